"""What the figures of tables and reports mean, under the short names used here and under the field's."""

import html

TERMS = {
    "Zero-shot": "CLIP without any training.",
    "Clients' own images (personalised accuracy)": (
        "Each client's model on that client's own test images; the mean over clients, each counted once."
    ),
    "Worst tenth (worst decile)": (
        "The mean of the same over the tenth of the clients with the lowest accuracy, at least one client."
    ),
    "Pooled images (global accuracy)": (
        "The federation's model, which is the shared variables alone, on the test images of all clients together."
    ),
    "Numbers sent (uplink parameters)": (
        "Trained numbers that one client sends to the server in one round, 4 bytes each."
    ),
    "Calibration error (ECE)": (
        "The difference between stated confidence and accuracy, in bins of confidence, weighted by images."
    ),
}
# The same in short, below a table on a terminal.
BELOW_TABLE = (
    "clients' own: each client's images, mean over clients (personalised accuracy)\n"
    "worst tenth: the same over the tenth of clients with the lowest (worst decile)\n"
    "pooled: all test images, the shared prompt alone (global accuracy)\n"
    "numbers sent: by a client in a round (uplink parameters)"
)


def as_html() -> str:
    """A list that a reader opens."""
    terms = "".join(f"<dt>{html.escape(term)}</dt><dd>{html.escape(said)}</dd>" for term, said in TERMS.items())
    return f"<details><summary>What the figures mean</summary><dl>{terms}</dl></details>"
