"""PEFT types of our own: PEFT has no way to add one from outside, so a member is put into its enum.

A checkpoint names its type together with what it needs, so that PEFT, where rankwise was not imported, fails with
those words as its error: its `KeyError` shows the name that it does not know.
"""

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method
from peft.utils.peft_types import PeftType


def peft_type(name: str) -> PeftType:
    """The member of PEFT's enum called `name`, made if there is none."""
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    type.__setattr__(PeftType, name, member)
    return member


def written_type(name: str) -> str:
    """What a checkpoint's config says instead of the bare name."""
    return f"{name} (needs the package rankwise: `pip install rankwise`, then `import rankwise` before loading)"


def register(name: str, config: type[PeftConfig], tuner: type[BaseTuner]) -> None:
    """Make `get_peft_model`, `from_pretrained` and the others know a type; a second call changes nothing."""
    member = peft_type(name)
    if member in PEFT_TYPE_TO_CONFIG_MAPPING:
        return
    register_peft_method(name=name.lower(), config_cls=config, model_cls=tuner, prefix=tuner.prefix)
    PEFT_TYPE_TO_CONFIG_MAPPING[written_type(name)] = config
