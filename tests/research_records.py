"""Small records of our own in the shapes that others write: a proposal, run configs, a refinement, a review."""

import json

HYPOTHESIS = {
    "open_problems": "Every matrix gets the same rank, though some need none.",
    "method": "Spare Rank (SpareLoRA)\n1. Train all ranks.\n2. Drop the smallest singular values.",
    "experimental_setup": "Model: a small encoder. Task: RTE. Baselines: (1) LoRA, r=8.",
    "experimental_code": "def drop(values, keep):\n    return sorted(values)[-keep:]",
    "expected_result": "Accuracy: SpareLoRA ≈ LoRA, +0.5 points at half the parameters.",
    "expected_conclusion": "Rank can be spared.",
}
YAML = "run_id: {run}\nmethod: {method}\nmodel:\n  backbone: tiny\ntraining:\n  learning_rate: 2e-4\n"


def titled(value):
    """The same object with keys as some records write them: `Open Problems`."""
    names = {"method": "Methods"}
    return {names.get(key, key.replace("_", " ").title()): inner for key, inner in value.items()}


def paper(title, text="It ranks matrices.", **more):
    return {
        "Title": title,
        "Main Contributions": f"{text} {title} is where.",
        "Methodology": f"How: {text}",
        "Experimental Setup": "RTE and SST-2, one seed.",
        "Limitations": "Slow.",
        "Future Research Directions": "Not mentioned",
        "Experiment Code": None,
        "Experiment Result": None,
        **more,
    }


PAPERS = (
    paper("Ranks for Matrices"),
    paper("Pruning, Slowly: A Study", 'It prunes {braces} and "quotes".'),
    paper("Ranks for Matrices", "The same paper, told at greater length by somebody else."),
)


def proposal(papers=PAPERS, answer=HYPOTHESIS):
    listed = "".join(json.dumps(one, indent=4, ensure_ascii=False) for one in papers)
    return (
        "\nLLM Name: some-model-1\nInput:\nPropose a method with minimal changes.\n\n# Instructions:\n"
        f"- The research topic is this:\n    Sparing rank.\n- Prior studies:\n    {listed}\n- Keep it simple.\n\n"
        f"# Output content:\nName these parts:\n- method\n    - Say how.\nOutput:\n{json.dumps(answer, indent=4)}"
    )


def refinement(papers=PAPERS, answer=None, history=2):
    rounds = [{**HYPOTHESIS, "method": f"Spare Rank {n} (S{n})\n1. Do it."} for n in range(history + 1)]
    past = "\n".join(
        f"Hypothesis:\n{json.dumps(titled(one), indent=4)}\nNovelty: Nobody spared rank {n}.\nIt is new.\n"
        f"Significance: It saves {n} ranks. Score: {n + 5}/10"
        for n, one in enumerate(rounds[:history])
    )
    listed = "".join(json.dumps(one, indent=4) for one in papers)
    last = answer or {**HYPOTHESIS, "primary_metric": 'it\'s "accuracy"', "method": "Spare Rank 9 (S9)\n1. Do 'it'."}
    return (
        'LLM Name: some-model-1\nInput:\nRefine it.\n\n# Instructions\n- Read "Research Topic".\n\n'
        f"# Research Topic\nSparing rank.\n\n# Current Hypothesis\n{json.dumps(titled(rounds[history]), indent=4)}\n\n"
        "# Novelty\nNothing like it is known.\n\n# Significance\nIt would save much.\n\n"
        f"# Hypothesis History\n{past}\n\n\n# Research Study List\n{listed}\nOutput:\n{last!r}"
    )


def configs():
    printed = " ".join(f"{key}={value!r}" for key, value in HYPOTHESIS.items())
    runs = {"proposed-tiny--RTE": "proposed", "comparative-1-tiny--RTE": "comparative-1"}
    answer = {
        "run_configs": [
            {"run_id": run, "run_config_yaml": YAML.format(run=run, method=method)} for run, method in runs.items()
        ]
    }
    listed = "\n\n".join(
        f"- Run ID: {run}\n  Method: {method}\n  Model: tiny\n  Dataset: RTE" for run, method in runs.items()
    )
    card = "---\nfeatures:\n  - name: a\n    dtype: string\n  - name: b\n    dtype: int64\n  splits:\n  - name: train\n"
    card += "    num_bytes: 12\n    num_examples: 345\n"
    return (
        "\nLLM Name: some-model-1\nInput:\nWrite run configs.\n\n# Task\nOne per run.\n\n# Input Information\n\n"
        f"## Hypothesis\n{printed}\n\n## Research Method\n{HYPOTHESIS['method']}\n\n## Experimental Design\n"
        "experiment_summary='We compare.' evaluation_metrics=['Accuracy', 'Time'] proposed_method=\"it's spare\" "
        "comparative_methods=['LoRA'] models_to_use=['tiny (1M)'] datasets_to_use=['RTE'] "
        "hyperparameters_to_search={'learning_rate': '1e-4-5e-4', 'rank': '4,8'} "
        "external_resources=Resources(hub=Hub(models=[HubResource(id='me/tiny', "
        "made=datetime.datetime(2024, 1, 2, tzinfo=TzInfo(UTC)), readme='A (tiny) model: {x}')], "
        f"datasets=[HubResource(id='me/rte', size=None, readme={card!r}, extracted_code=None)])) "
        "experiment_code=None\n\n"
        f"## Experiment Runs\n\n{listed}\n\n\n# Requirements\n\n## Format\n```yaml\nrun_id: example\n```\n\n"
        "# Experimental Environment\nOne GPU\n\n# Instructions\n1. Write them.\nOutput:\n"
        f"{json.dumps(answer, indent=2)}"
    )


def review():
    return """reviews. sign in

arxiv: 2401.01234 · v1 · submitted 2024-01-05 · cs.LG

SpareLoRA: Ranks That Nobody Needs

Ann Lee, Bo van der Berg, Cy O'Neil

Reviewed 2024-02-01 · model judge-2.1

The pith

Ranks can be spared.

Read by a machine.

The paper says that ranks can be spared and shows how.

Core claim

Half of the ranks are enough.

What carries the argument

Small singular values.

If this is right

  • Adapters shrink.
  • Training is as fast.

Where we are reading between the lines

Not the authors' words.

  • Heads could shrink too.

Load-bearing premise

Small values do not matter.

What would settle it

Compare with random ranks.

read the original abstract

We spare ranks. It works.

Editorial analysis

Objections.

Referee Report

2 major / 1 minor

Summary. Ranks are spared.

Significance. It matters if it holds.

major comments (2)
  1. [§3] No control is run.
  2. [Tables] One seed only.
minor comments (1)
  1. [§1] Notation.

Simulated Author's Rebuttal

2 responses · 0 unresolved

Thanks.

  1. Referee: [§3] No control is run.

    Authors: We ran one. revision: yes

  2. Referee: [Tables] One seed only.

    Authors: We ran three more. revision: no

Circularity Check

0 steps flagged

None.

Axiom & Free-Parameter Ledger

0 free parameters · 0 axioms

Nothing is free.

discussion (0)

Forward citations

Cited by 2 papers

  1. Sparing More

    cs.LG 2024-03 unverdicted novelty 7.0

    It spares more.

  2. Sparing Less

    cs.CL 2024-04 accept novelty 4.0

    It spares less.

Reference graph

2 extracted references · 0 internal

  1. [1]

    Rank theory

    A. Nobody. Rank theory. 1999,

  2. [2]

    12 Published elsewhere. Values
"""
