"""Evidence that knows two sources of noise: seeds of training, and the examples that were evaluated on.

They are crossed (every seed sees every example) and independent, so each gets the half-width that it would have alone
and the two are added in quadrature, as `statistics.compare_arms` does for one task (decision 4):

    half(c)² = t(df, c)² · se² + t(df_examples, c)² · se_examples²

A p-value is the level at which the end of the interval touches the edge. More seeds do not make the second part
smaller: where it alone is too wide, no number of seeds settles a claim.

Source: W. G. Howe, "Approximate confidence limits on the mean of X + Y", Journal of the American Statistical
Association 69, 1974.
"""

import math
from dataclasses import dataclass, fields

from scipy import optimize, special

from rankwise.errors import DataError
from rankwise.experiments.claim_statistics import Evidence

_LEAST = 1e-12
"""Smaller p-values are not told apart."""


@dataclass(frozen=True)
class EvidenceOnExamples(Evidence):
    """Evidence whose mean would also differ on other examples, with this standard error and degrees of freedom."""

    se_examples: float = 0.0
    df_examples: float = math.inf

    def ends(self, confidence: float) -> tuple[float, float]:
        """Both ends of the interval; see the module."""
        low, high = super().ends(confidence)
        half = float(special.stdtrit(self.df_examples, (1 + confidence) / 2)) * self.se_examples
        return self.mean - math.hypot(self.mean - low, half), self.mean + math.hypot(high - self.mean, half)

    def _p(self, distance: float) -> float:
        seeds_alone = super()._p(distance)
        if math.isnan(self.se):
            return 1.0
        if distance < 0:
            return 1.0 if self.se == 0 else 1 - self._p(-distance)
        if self.se == 0:
            return max(seeds_alone, float(special.stdtr(self.df_examples, -distance / self.se_examples)))
        reach = self.ends(1 - 2 * _LEAST)[1] - self.mean
        if distance >= reach:
            return _LEAST
        return float(optimize.brentq(lambda p: self.ends(1 - 2 * p)[1] - self.mean - distance, _LEAST, 0.5, xtol=1e-13))


def on_examples(found: Evidence, se: float, df: float) -> Evidence:
    """`found` with the noise of the examples added; itself where there is none.

    Args:
        found: from seeds.
        se: standard error of the mean difference over draws of the examples, seeds fixed.
        df: its degrees of freedom, the number of examples less one.

    Raises:
        DataError: a standard error that is negative or not finite, or degrees of freedom below 1.
    """
    if not (math.isfinite(se) and se >= 0 and df >= 1):
        raise DataError(
            f"standard error {se} with {df} degrees of freedom: must be finite, not negative, and at least 1"
        )
    if se == 0:
        return found
    return EvidenceOnExamples(
        **{f.name: getattr(found, f.name) for f in fields(Evidence)}, se_examples=se, df_examples=df
    )


def as_noisy(found: Evidence, like: Evidence) -> Evidence:
    """`found` with the examples' noise of `like`."""
    if isinstance(like, EvidenceOnExamples):
        return on_examples(found, like.se_examples, like.df_examples)
    return found
