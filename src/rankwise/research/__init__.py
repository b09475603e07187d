"""Research: from prior papers to a verdict. A language model proposes; code checks, runs and judges."""
