"""Strangers' words, made fit to be told."""


def printable(name: str) -> str:
    """A name without what a header, a terminal or a path could take for more than a letter."""
    return "".join(letter if letter.isprintable() else "_" for letter in name)
