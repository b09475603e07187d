"""Known defects 32 to 51: run configs and the design that they come from."""

from rankwise.research.checks.catalogue_methods import Row

CONFIGS: dict[int, Row] = {
    32: ("There is no run of plain LoRA, to which everything is compared.", "table"),
    33: ("Runs are on one task, claims about a benchmark.", "table"),
    34: ("Warm-ups disagree, or a fixed value lies outside its own search range.", "arithmetic"),
    35: ("The budget is counted in layers, in matrices and as a number, and none agree.", "arithmetic"),
    36: ("The budget or the batch size is searched in a comparison that holds them equal.", "table"),
    37: ("Steps stay fixed while the batch size, and so the length of training, is searched.", "arithmetic"),
    38: ("AdaLoRA's schedule is incomplete, or its target rank is no whole number.", "table"),
    39: ("The baseline's own settings are far from its authors'; arms are searched differently.", "table"),
    40: ("A key of the search space names no field by itself.", "table"),
    41: ("A number is text to plain YAML readers.", "table"),
    42: ("The number of parameters is text and wrong.", "table"),
    43: ("The search maximises a metric that is not measured.", "table"),
    44: ("A role stands for the method's name; one run has several ids; a model two names.", "table"),
    45: ("No seed is given; trials are chosen on the data that are reported.", "table"),
    46: ("The search costs hundreds of passes over the data without a pruner or a limit.", "arithmetic"),
    47: ("The dataset on the hub has other rows and columns than the task.", "table"),
    48: ("Devices differ between text, design and config, and nothing enforces one.", "table"),
    49: ("Search ranges are text such as `1e-4-5e-4`, under names that are no settings.", "syntax tree"),
    50: ("Distributions have names that the search library does not know.", "table"),
    51: ("Nothing selects the wrapper; sizes of the adapter are missing; each method has its own keys.", "table"),
}  # fmt: skip
