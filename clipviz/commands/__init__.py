"""What the commands of the command line do; `clipviz NAME` is the function NAME of the module NAME."""
