"""Known defects 52 to 83: refined hypotheses; 84 to 89: a machine review."""

from rankwise.research.checks.catalogue_methods import Row

REFINEMENTS: dict[int, Row] = {
    52: ("A closed gate is said to save training time, though everything is computed.", "wording"),
    53: ("A penalty on a gate alone is undone by a larger update, and gradient steps reach no exact zero.", "wording"),
    54: ("Pruning adapters is to save more FLOPs than adapters have.", "arithmetic"),
    55: (
        "The layer applies B before A, loses scaling and pretrained weights, replaces nothing, chooses by shape, "
        "merges ungated.",
        "syntax tree",
    ),
    56: ("The straight-through estimator has the wrong sign.", "syntax tree"),
    57: ("The adapter is computed for all inputs and then multiplied by the gate.", "syntax tree"),
    58: ("Gating adapters per input is to save more FLOPs than adapters have; it rules out merging.", "arithmetic"),
    59: ("The loss has a mean where the formula has a sum.", "syntax tree"),
    60: ("Padding is part of the mean over tokens.", "syntax tree"),
    61: ("Adapters are trained with a learning rate for full fine-tuning.", "table"),
    62: ("The expected gain is a few examples of the validation set.", "arithmetic"),
    63: ("The answer is a Python repr, not JSON.", "table"),
    64: ("The primary metric is a sentence with a constraint, which the expected result violates.", "arithmetic"),
    65: ("The number of ranks of plain LoRA is wrong.", "arithmetic"),
    66: ("A round predicts less than the round that it refines, or other values for its methods.", "arithmetic"),
    67: ("A router per layer is shared by all layers.", "wording"),
    68: ("A categorical choice has one output too few.", "arithmetic"),
    69: ("A gate and rank 0 decide the same thing.", "wording"),
    70: ("A generator of weights is larger than what it generates; text and sketch disagree on it.", "arithmetic"),
    71: ("Generating weights costs more than using them, and does not depend on the rank.", "arithmetic"),
    72: ("Gathering one index picks one component, not the first k.", "syntax tree"),
    73: ("An axis is transposed that the tensor does not have.", "syntax tree"),
    74: ("Python's max is called with a tensor.", "syntax tree"),
    75: ("F.linear is called with a weight per example.", "syntax tree"),
    76: ("The update is added to the layer's input.", "syntax tree"),
    77: ("A sampled index passes no gradient to its probabilities.", "syntax tree"),
    78: ("The rank penalty is divided by the number of ranks; one point of the grid has no penalty.", "syntax tree"),
    79: ("Training draws decisions, inference takes the likelier one.", "wording"),
    80: ("A cache is keyed by real numbers.", "wording"),
    81: (
        "A method that results are compared with is not run; a paper with the same idea is not mentioned.", "table",
        "prior work that is not in the list of papers",
    ),
    82: (
        "Conclusions are general, experiments are one model and one task; evaluators are not asked about feasibility.",
        "wording",
        "whether a proposal is feasible: an opinion is asked, runs decide",
    ),
    83: (
        "Papers are there twice, off topic, or long listings of code.", "table",
        "whether an off-topic paper holds a useful idea",
    ),
    84: ("The importance score is described wrongly.", "table", "descriptions of methods other than AdaLoRA"),
    85: ("Responses report experiments that nobody ran.", "wording"),
    86: ("No free parameter is counted for a method that has several.", "table", "methods that are not among ours"),
    87: ("Comments ask the abstract for what the paper's body holds.", "wording"),
    88: ("A cost is called comparable that the paper reports as higher.", "arithmetic"),
    89: ("What would settle the claim can hardly come out against it.", "wording"),
}  # fmt: skip
