"""What a user is told when something cannot be done: what happened, why, what to do next."""


class Problem(Exception):
    """An expected failure, shown to the user as it is.

    ``what`` is one sentence that names the thing and the reason; ``next_step`` says what to do about it.
    Both are already translated (or lazy) text and carry no secret.
    """

    def __init__(self, what: str, next_step: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.next_step = next_step

    @property
    def told(self) -> str:
        """For keeping as a reason: what happened on the first line, what to do next on the second."""
        return f"{self.what}\n{self.next_step}".strip()

    def __str__(self) -> str:
        return f"{self.what} {self.next_step}".strip()
