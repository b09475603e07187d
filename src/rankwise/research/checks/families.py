"""Imports every family of rules, which files them."""

from rankwise.research.checks import agreement as agreement
from rankwise.research.checks import budget as budget
from rankwise.research.checks import costs as costs
from rankwise.research.checks import design_text as design_text
from rankwise.research.checks import designs as designs
from rankwise.research.checks import expectations as expectations
from rankwise.research.checks import measures as measures
from rankwise.research.checks import papers as papers
from rankwise.research.checks import reviews as reviews
from rankwise.research.checks import run_configs as run_configs
from rankwise.research.checks import signals as signals
from rankwise.research.checks import sketch_gradients as sketch_gradients
from rankwise.research.checks import sketch_layers as sketch_layers
from rankwise.research.checks import sketch_peft as sketch_peft
from rankwise.research.checks import sketch_shapes as sketch_shapes
from rankwise.research.checks import steps as steps
