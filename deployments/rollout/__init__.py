"""From a plan to servers that answer, and back: the `stories`, what their steps do, what their logs say."""
