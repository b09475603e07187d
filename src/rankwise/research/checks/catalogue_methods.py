"""Known defects 1 to 31: a method, its experiment and its sketch of code."""

from typing import Literal, TypeAlias

How: TypeAlias = Literal["arithmetic", "syntax tree", "wording", "table"]
Row: TypeAlias = tuple[str, How] | tuple[str, How, str]

METHODS: dict[int, Row] = {
    1: ("A total rank is given several times with different values.", "arithmetic"),
    2: ("The uniform arm spends more ranks than the adaptive arms that it is compared with.", "arithmetic"),
    3: ("The share of parameters that is stated fits no choice of matrices at that rank.", "arithmetic"),
    4: ("Training starts above the final budget, and which of them the budget means is not said.", "arithmetic"),
    5: ("Equal rank is taken for equal parameters although matrices differ in shape.", "arithmetic"),
    6: ("A warm-up is longer than training on one task, or differs between text and sketch.", "arithmetic"),
    7: (
        "A moving average that looks back ten steps stands for a warm-up of thousands; it starts at zero uncorrected.",
        "arithmetic",
    ),
    8: ("The score needs a gradient that backpropagation does not have; the sketch takes another one.", "wording"),
    9: ("Gradient norms of different shapes and scalings are compared as they are.", "wording"),
    10: ("A large gradient is taken for importance without a random and a reversed control.", "wording"),
    11: ("Ranks are rounded and mended in order of modules, without a smallest and a largest rank.", "syntax tree"),
    12: ("The first columns of a factor are kept when a rank shrinks, although columns have no order.", "syntax tree"),
    13: ("The scaling alpha / r jumps when r changes.", "wording"),
    14: ("New parameters never reach the optimizer, which also forgets its moments.", "syntax tree"),
    15: (
        "AdaLoRA is said to run SVDs or extra passes.", "table",
        "premises about other papers: only this one is checked",
    ),
    16: ("A share of another method's gain, or a benchmark's score from a few tasks, is predicted.", "arithmetic"),
    17: ("Two methods are said to be equal without a margin.", "wording"),
    18: ("There is one seed, or none is mentioned; times are not repeated.", "wording"),
    19: ("A metric is reported that none of the tasks uses.", "table"),
    20: (
        "All arms share one learning rate and schedule that nobody tuned.", "wording",
        "which rate each arm would need: tuning shows it",
    ),
    21: ("No primary metric is named.", "wording"),
    22: (
        "The method's name is taken.", "table",
        "names that are neither in the table nor in the list of papers",
    ),
    23: (
        "Papers of the list are off topic, or their code is of something else.", "wording",
        "whether an off-topic paper holds a useful idea",
    ),
    24: ("A hook is registered on PEFT's dictionary of factors, which has no hooks.", "syntax tree"),
    25: ("The weight of PEFT's dictionary of factors is read.", "syntax tree"),
    26: ("PEFT's update_layer is called without what it needs.", "syntax tree"),
    27: ("Rows of B are sliced where components are columns.", "syntax tree"),
    28: ("A LoraConfig without a task type freezes the new head.", "syntax tree"),
    29: ("A tensor is tied to the device that the model happened to be on.", "syntax tree"),
    30: ("Hooks are never removed; a callback is never called.", "syntax tree"),
    31: ("Target modules, alpha and dropout are left to defaults.", "syntax tree"),
}  # fmt: skip
