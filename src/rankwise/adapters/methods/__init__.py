"""One file per method; importing this package registers them all."""

from rankwise.adapters.methods import full as full
from rankwise.adapters.methods import glora as glora
from rankwise.adapters.methods import lora as lora
from rankwise.adapters.methods import peft_adalora as peft_adalora
