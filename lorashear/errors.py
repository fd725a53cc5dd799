"""What LoRAShear says in one sentence."""


class LorashearError(Exception):
    """The request or the input is wrong.

    Its text is one sentence: which input, which axis or tensor, what was found, what to do. The command line prints
    it alone and leaves with exit code 2; any other exception, and `Fault`, is a fault of ours.
    """


class Fault(LorashearError):
    """LoRAShear itself is wrong and noticed it; the sentence says that it is to be reported. Exit code 1."""
