"""Whatever is written in a field, the judge answers; what is sane, it leaves alone."""

import string

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from research.checks.judged import repaired

from rankwise.research.artefacts import Hypothesis, Paper, Statement
from rankwise.research.checks import check_hypothesis, check_papers, check_record, check_review
from rankwise.research.extract import claims
from rankwise.research.imported import Imported, ImportedReview, Round

PIECES = (
    "LoRA",
    "AdaLoRA",
    "≈",
    ">",
    "(",
    ")",
    "±2 %",
    "-60 %",
    "+0.5-1.0 points",
    "FLOPs",
    "rank",
    "r=8",
    "r_max = 8",
    "λ_c ∈ {0, 1}",
    "{0,...,r_max}",
    "remaining r_max logits",
    "MNLI",
    "SST-2",
    "DeBERTa-v3-base",
    "batch 32",
    "3 epochs",
    "warm-up of one epoch",
    "β = 1.0",
    "β = 0.9",
    "EMA",
    "of AdaLoRA's gain",
    "\n",
    "; ",
    ". ",
    "1e400",
    "0",
    "99999999999999999999",
    "SVD",
    "cache",
    "h",
    "W' = W0 + g * B A",
    "L1",
    "gradient norm",
    "∂L/∂Δ",
    "per-layer router",
    "GLUE score",
    "𝟗𝟐.𝟓 %",
    "\u0000",
    "﷽",
    "number of matrices x 8",
    "total rank budget of 0",
    "0 epochs",
    "batch 0",
    "seeds 5 to 1",
    "hyper-network",
    "training time",
    "vs 40 ranks for uniform LoRA",
)
CODE = (
    "x = ",
    "max(k, 1)",
    "lora_B",
    ".weight",
    "[:k]",
    "LoraConfig(",
    ")",
    "\n",
    "    ",
    "def forward(self, x):",
    "return x + ",
    "gate",
    "p.detach()",
    " - ",
    "p",
    "torch.multinomial(p, 1)",
    "nn.Linear(h, r_max * d_in)",
    "class A(LoraLayer):",
    "lambda",
    "{",
    "λ",
)
words = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=12)), min_size=1, max_size=25).map(" ".join)
text = st.one_of(words, st.text(min_size=1, max_size=200)).filter(lambda one: bool(one))
code = st.one_of(
    st.lists(st.sampled_from(CODE), max_size=25).map("".join), st.text(alphabet=string.printable, max_size=80)
)
hypotheses = st.builds(
    Hypothesis,
    title=words,
    open_problems=text,
    method=text,
    experimental_setup=text,
    primary_metric=words,
    experimental_code=code,
    expected_result=text,
    expected_conclusion=words,
)
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(st.lists(hypotheses, min_size=1, max_size=3), st.text(max_size=300))
def test_no_text_breaks_the_judge(rounds, design):
    papers = (
        Paper(
            id="p1",
            title=rounds[0].title or "t",
            contributions=(Statement(text=rounds[0].method),),
            code=rounds[0].experimental_code,
        ),
    )
    record = Imported("refinement", "x", papers=papers, rounds=tuple(Round(one) for one in rounds), design_text=design)
    for one in check_record(record):
        assert one.rule != "unnamed"
        assert one.message
    for one in rounds:
        names = [claim.id for claim in claims(one)]
        assert names == [f"C{number}" for number in range(1, len(names) + 1)]


@quick
@given(
    st.dictionaries(st.sampled_from(("ledger", "core_claim", "what_would_settle_it", "abstract")), words), words, words
)
def test_no_text_breaks_the_judge_of_reviews(sections, title, comment):
    said = {"major": (comment,), "responses": (comment,), "references": (comment,)}
    check_review(ImportedReview(title=f"AdaLoRA {title}", arxiv=None, model="", sections=sections, **said))
    check_papers([Paper(id="a", title=title or "t", result=comment), Paper(id="b", title=comment or "t", code=comment)])


SETUPS = st.builds(
    "Model: {} and {}.\nTasks: {}.\nBaselines: uniform LoRA with rank={}, AdaLoRA, random allocation, all with the "
    "same number of "
    "adapter parameters.\nTraining: AdamW, learning rate tuned per arm with {} trials on a split of the training "
    "examples, batch {}, "
    "{} epochs, {} seeds.\nMetrics: accuracy on the validation set.".format,
    st.just("DeBERTa-v3-base"),
    st.sampled_from(("RoBERTa-base", "BERT-base-uncased")),
    st.sampled_from(("MNLI, QNLI and QQP", "QQP and MNLI", "QNLI, QQP and MNLI")),
    st.sampled_from((2, 4, 8, 16)),
    st.integers(4, 20),
    st.sampled_from((16, 32, 64)),
    st.integers(1, 5),
    st.integers(8, 30),
)
METHODS = st.sampled_from(
    (
        "Ranks by activation spectra ({0})\nThe activations of 64 batches are decomposed; the budget, counted in "
        "adapter parameters, is "
        "spent by largest remainders with a floor of one rank. Ranks then stay.",
        "Sparse blocks ({0})\nThe top blocks get twice the rank of the low ones, the feed-forward part twice that of "
        "attention. Nothing "
        "is decided by data.",
        "Trimmed at the end ({0})\nTrain uniform adapters at twice the rank, then cut every update by an SVD of the "
        "product B A at one "
        "global threshold, so that the budget in adapter parameters is met; the scaling is kept.",
    )
)
RESULTS = st.builds(
    "{{0}} is +{} points over uniform LoRA.\nAccuracy: {{0}} ≈ AdaLoRA (within ±{} points).\nTraining time: {{0}} ≈ "
    "uniform LoRA "
    "(within ±{} %).".format,
    st.sampled_from(("1.5", "2", "2.5", "3.0")),
    st.sampled_from(("0.5", "1")),
    st.integers(2, 10),
)
NAMES = st.sampled_from(("TrimRank", "BlockRank", "SpreadRank", "WiseRank", "PlaceRank"))


@quick
@given(
    NAMES,
    SETUPS,
    METHODS,
    RESULTS,
    st.sampled_from(("accuracy", "validation accuracy", "mean accuracy over the tasks")),
)
def test_no_false_alarm_on_sane_hypotheses(name, setup, method, result, metric):
    sane = Hypothesis(
        title=method.format(name).splitlines()[0],
        open_problems="Uniform LoRA spends the same rank everywhere.",
        method=method.format(name),
        experimental_setup=setup,
        primary_metric=metric,
        expected_result=result.format(name),
        expected_conclusion="On these encoders and tasks, where rank goes decides what it is worth.",
    )
    found = check_hypothesis(sane, papers=repaired("hypothesis").papers)
    assert [f"{one.rule} {one.items} {one.message}" for one in found] == []
    assert [one.kind for one in claims(sane)] == ["superiority", "equivalence", "equivalence"]
    assert {one.arm for one in claims(sane)} == {name}
