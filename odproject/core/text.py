"""Strangers' words, made fit to be told."""

import unicodedata

from rest_framework import serializers

# Control characters and ends of lines; what changes the direction of writing has its use.
_UNREADABLE_CATEGORIES = {"Cc", "Cs", "Zl", "Zp"}
_BEGINS_OF_FORMULAS = frozenset("=+-@")


def printable(name: str) -> str:
    """A name without what a header, a terminal or a path could take for more than a letter."""
    return "".join(letter if letter.isprintable() else "_" for letter in name)


def inert(text: str) -> str:
    """A text for a cell of a table, which no spreadsheet takes for a formula and runs."""
    seen = next((letter for letter in text if letter.isprintable() and letter != " "), "")
    begins_a_formula = unicodedata.normalize("NFKC", seen) in _BEGINS_OF_FORMULAS  # wide ones too
    return f"'{text}" if begins_a_formula else text


def readable(text: str) -> None:
    """Refuse a text that pages and terminals would not show as it is (ValidationError)."""
    if any(unicodedata.category(character) in _UNREADABLE_CATEGORIES for character in text):
        raise serializers.ValidationError("Control characters are not allowed.", "control")
