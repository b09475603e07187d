"""Numbers, settings and claims out of text."""

import os
from pathlib import Path

import pytest
from research.checks.judged import repaired

from rankwise.research.artefacts import Claim, Hypothesis
from rankwise.research.extract import claims, predictions, proposed_name, settings, stem
from rankwise.research.wording import clauses, denied, plain, states

EXAMPLES = os.environ.get("RANKWISE_EXAMPLES", "")


def one(text, *names):
    (found,) = [p for p in predictions(text, *names) if p.form not in ("order", "equal")]
    return found


PHRASES = [
    ("It gains 0.3-0.8 points over uniform LoRA.", "accuracy", "change", 0.003, 0.008),
    ("Accuracy drops by 2 points.", "accuracy", "change", -0.02, -0.02),
    ("88.5 % accuracy on the validation set", "accuracy", "value", 0.885, 0.885),
    ("accuracy falls to ≈ 87.0 %", "accuracy", "value", 0.87, 0.87),
    ("Inference FLOPs ↓35 %", "inference_flops", "change", -0.35, -0.35),
    ("inference FLOPs −60 %", "inference_flops", "change", -0.6, -0.6),
    ("FLOPs are reduced by 30 percent", "inference_flops", "change", -0.3, -0.3),
    ("leaving a 20 % FLOP saving", "inference_flops", "change", -0.2, -0.2),
    ("Training time +5 %", "train_seconds", "change", 0.05, 0.05),
    ("training is 15 % faster", "train_seconds", "change", -0.15, -0.15),
    ("Training time within ±2 %", "train_seconds", "within", 0.02, 0.02),
    ("accuracy within 0.5 points", "accuracy", "within", 0.005, 0.005),
    ("80 to 85 % of AdaLoRA's gain", "accuracy", "share_of_gain", 0.8, 0.85),
    ("~30 % adapters active", "active_share", "value", 0.3, 0.3),
    ("≈5 active layers", "active_modules", "value", 5, 5),
    ("a total rank of 40", "total_rank", "value", 40, 40),
    ("adapter memory ↓70 %", "adapter_memory", "change", -0.7, -0.7),
    ("latency drops by 10 %", "latency_ms", "change", -0.1, -0.1),
    ("trainable parameters fall by 45 %", "parameters", "change", -0.45, -0.45),
]


@pytest.mark.parametrize(("text", "quantity", "form", "low", "high"), PHRASES, ids=[p[0][:40] for p in PHRASES])
def test_numbers(text, quantity, form, low, high):
    found = one(text)
    assert (found.quantity, found.form) == (quantity, form)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(
    "text", ["after 3 epochs", "with seed 4", "r = 8", "λ=0.2", "1. First", "in 2023", "step 100", "(a) x", "5x5 grid"]
)
def test_what_is_no_prediction(text):
    assert predictions(text) == ()


def test_sides():
    found = one("SwitchLoRA is +1.5 points over uniform LoRA")
    assert (found.subject, found.reference) == ("SwitchLoRA", "uniform LoRA")
    assert one("Trimmed is +1.5 points over uniform LoRA", "Trimmed").subject == "Trimmed"
    values = predictions(
        "- Standard LoRA: 88.0 % accuracy.\n- SwitchLoRA: 88.9 % with 30 % adapters active; 5 % FLOP saving"
    )
    assert [(p.subject, p.quantity) for p in values] == [
        ("Standard LoRA", "accuracy"),
        ("SwitchLoRA", "accuracy"),
        ("SwitchLoRA", "active_share"),
        ("SwitchLoRA", "inference_flops"),
    ]
    (ablation,) = predictions("without the gate it reaches 90.0 % accuracy")
    assert ablation.variant == "without gate"


def test_chains_of_comparisons():
    found = predictions("Accuracy: NewLoRA ≈ AdaLoRA > plain LoRA")
    assert [(p.form, p.subject, p.reference) for p in found] == [
        ("equal", "NewLoRA", "AdaLoRA"),
        ("order", "AdaLoRA", "plain LoRA"),
        ("order", "NewLoRA", "plain LoRA"),
    ]
    (less,) = predictions("Accuracy: OldLoRA < NewLoRA")
    assert (less.subject, less.reference) == ("NewLoRA", "OldLoRA")


def test_settings():
    text = (
        "Model: microsoft/deberta-v3-base. Tasks: MNLI, SST2 and CoLA.\nBaselines: (1) vanilla LoRA r=8, (2) full "
        "fine-tuning, "
        "(3) random allocation; proposed NewLoRA.\nAdamW with learning rate 2e-4, batch size 32, 3 epochs, warm-up of "
        "one epoch, "
        "β = 0.9, alpha=16, dropout 0.1, five seeds.\nThe total rank budget is 144, number of matrices × 2. λ ∈ {0.1, "
        "0.2}.\n"
        "Metrics: accuracy, Matthews correlation and wall-clock time on one A100."
    )
    found = settings(text)
    assert found.models == ("microsoft/deberta-v3-base",)
    assert found.tasks == ("glue/mnli", "glue/sst2", "glue/cola")
    assert (found.learning_rate, found.batch_size, found.epochs, found.rank) == (2e-4, 32, 3, 8)
    assert (found.warmup_epochs, found.beta, found.alpha, found.dropout, found.seeds) == (1, 0.9, 16, 0.1, 5)
    assert (found.budgets, found.rank_expressions) == ((144,), (("matrices", 2),))
    assert found.penalties == (0.1, 0.2)
    assert found.metrics == ("accuracy", "matthews_correlation", "train_seconds")
    assert found.devices == ("A100",)
    assert {stem(name) for name in found.baselines} == {"lora", "full", "random"}


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("10 seeds", 10),
        ("three random seeds", 3),
        ("seeds 0 to 4", 5),
        ("seeds: 1, 2, 3", 3),
        ("same seed", 1),
        ("a seed", None),
    ],
)
def test_seeds(text, seeds):
    assert settings(text).seeds == seeds


@pytest.mark.parametrize("text", ["r=4", "rank of 4", "LoRA-4 everywhere", "LoRA of rank 4 on all", "a uniform rank 4"])
def test_ranks(text):
    assert settings(text).rank == 4


def test_several_learning_rates_are_none():
    found = settings("lr in {1e-4, 3e-4}")
    assert found.learning_rates == (1e-4, 3e-4)
    assert found.learning_rate is None


def test_claims_that_are_given_are_kept():
    own = (Claim(id="X", text="t", kind="not-testable", reason="r"),)
    given = Hypothesis(
        open_problems="a", method="b", experimental_setup="c", expected_result="+9 points over LoRA", claims=own
    )
    assert claims(given) == own


def test_claims_of_a_hypothesis_that_brings_none():
    found = claims(repaired("hypothesis").rounds[0].hypothesis)
    assert [one.id for one in found] == ["C1", "C2", "C3"]
    shown = {(c.kind, c.quantity, c.reference, c.margin, c.expected) for c in found}
    assert shown == {
        ("superiority", "accuracy", "uniform LoRA", 0.0, 0.015),
        ("equivalence", "accuracy", "AdaLoRA", 0.005, None),
        ("equivalence", "train_seconds", "LoRA", 0.05, None),
    }
    assert all(one.arm == "GradRank" for one in found)


def said(text, method="New thing (NewLoRA)\nIt does."):
    return Hypothesis(
        open_problems="a", method=method, experimental_setup="Baselines: plain LoRA.", expected_result=text
    )


def test_what_a_text_leaves_open_is_filled_in_and_said():
    (equal,) = claims(said("NewLoRA ≈ AdaLoRA in accuracy"))
    assert (equal.margin, "no margin" in equal.reason) == (0.005, True)
    (share,) = claims(said("It has 80-85 % of AdaLoRA's gain"))
    assert (share.kind, "ratio" in share.reason) == ("non-inferiority", True)
    (cost,) = claims(said("Training time ~10 % faster"))
    assert (cost.kind, cost.reference, cost.at_most) == ("bound", "plain LoRA", pytest.approx(0.91))
    (value,) = claims(said("88.5 % accuracy"))
    assert (value.kind, value.reference, "absolute" in value.reason) == ("non-inferiority", "plain LoRA", True)
    (worse,) = claims(said("NewLoRA: 91 % accuracy. plain LoRA: 92 % accuracy."))
    assert (worse.kind, worse.margin) == ("non-inferiority", pytest.approx(0.015))
    assert claims(said("It works.")) == ()


@pytest.mark.parametrize(
    ("title", "method", "name"),
    [
        ("", "Gated things (GateLoRA)\n1. Do.", "GateLoRA"),
        ("A title", "Nothing.", "A title"),
        ("", "SwitchLoRA does it.", "SwitchLoRA"),
        ("", "Nothing here.", ""),
        ("Ranks (SVD) by Bank (BankRank)", "x", "BankRank"),
    ],
)
def test_names_of_proposals(title, method, name):
    assert proposed_name(title, method) == name


def test_wording():
    assert plain("a\u00a0–\u2212b ’") == "a --b '"
    assert list(clauses("One. Two; three\nfour vs. Five")) == ["One", "Two", "three", "four vs. Five"]
    assert states("It is not slow. It is fast.", "fast") == "It is fast."
    assert states("It is not fast", "fast") is None
    assert denied("never mind that", 12)


@pytest.mark.skipif(not EXAMPLES, reason="RANKWISE_EXAMPLES does not name the folder of example records")
def test_claims_of_the_example_records():
    """The table of claims that the records make, by kind, quantity and expected number."""
    from rankwise.research.records import read_record

    def of(record, number=0):
        (path,) = Path(EXAMPLES).glob(f"{record}_*.txt")
        found = claims(read_record(path).rounds[number].hypothesis)
        return {(c.kind, c.quantity, stem(c.reference or ""), c.expected and round(c.expected, 3)) for c in found}

    assert of("000") == {
        ("superiority", "accuracy", "lora", 0.005),
        ("non-inferiority", "accuracy", "adalora", None),
        ("equivalence", "accuracy", "adalora", None),
        ("equivalence", "train_seconds", "lora", None),
        ("bound", "parameters", "adalora", None),
        ("superiority", "train_seconds", "adalora", -0.099),
    }
    assert of("001") == of("000")
    galora = of("002", 0)
    assert {("superiority", "accuracy", "lora", 0.003), ("bound", "active_share", "", None)} <= galora
    assert {("bound", "train_seconds", "lora", -0.15), ("bound", "inference_flops", "lora", -0.6)} <= galora
    cogalora = of("002", 1)
    assert {("superiority", "accuracy", "lora", 0.006), ("bound", "inference_flops", "lora", -0.55)} <= cogalora
    assert ("bound", "train_seconds", "lora", 0.05) in cogalora
    rad = of("002", 2)
    assert {("bound", "inference_flops", "lora", -0.6), ("bound", "adapter_memory", "lora", -0.95)} <= rad
    assert {("non-inferiority", "accuracy", "lora", None), ("bound", "total_rank", "", None)} <= rad
