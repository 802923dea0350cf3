"""Names on the Hub for the models of a merge."""

NAMES = [f"--name={name}" for name in ("base=org/base", "math=org/math", "law=org/law")]
