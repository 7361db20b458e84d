"""Class names, templates and descriptions: what a text classifier is made of."""

from clipviz.prompts.classes import (
    DEFAULT_TEMPLATES,
    ClassPrompts,
    Descriptions,
    TextSource,
    check_class_names,
    fill_template,
    make_prompts,
    normalize_name,
    read_descriptions,
    short_hash,
    spoken_name,
)

__all__ = ["DEFAULT_TEMPLATES", "ClassPrompts", "Descriptions", "TextSource", "check_class_names", "fill_template",
           "make_prompts", "normalize_name", "read_descriptions", "short_hash", "spoken_name"]  # fmt: skip
