"""Hypotheses of our own for tests of the design."""

from rankwise.research.artefacts import Claim, Hypothesis

ALLOCATION = Hypothesis(
    title="Rank by gradient norms (GLoRA)",
    open_problems="Every matrix gets the same rank. Some may need more.",
    method="Keep a running mean (beta = 0.8) of each matrix's gradient norm over a warm-up of one epoch.",
    experimental_setup="Model: DeBERTa-v3-base. Tasks: MNLI and RTE of GLUE. Baselines: AdaLoRA. 4 epochs, batch 16, "
    "lr = 1e-4, rank = 4, 5 seeds.",
    expected_result="GLoRA is above AdaLoRA by 1 point. Its training time equals AdaLoRA's within 5 %.",
    claims=(
        Claim(id="C1", text="better than AdaLoRA", kind="superiority", arm="GLoRA", reference="AdaLoRA", expected=0.01),
        Claim(
            id="C2",
            text="as fast",
            kind="equivalence",
            arm="GLoRA",
            reference="AdaLoRA",
            quantity="train_seconds",
            margin=0.05,
        ),
    ),
)
LOCAL = ALLOCATION.model_copy(
    update={
        "experimental_setup": "Model: MiniLM. Task: docstrings. Baselines: LoRA. 50 steps, batch 8, lr = 3e-3, r = 2."
    }
)
