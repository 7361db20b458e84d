"""Before any notebook is run as a test."""

# In a fresh environment matplotlib says on stderr that it collects the fonts. Here that is no
# unexpected output of a cell.
import matplotlib.font_manager  # noqa: F401
