"""A method that resizes as a test tells it to, and has a penalty if asked: it shows what a trainer does."""

from typing import final

from pydantic import Field
from tiny import tiny_model

from rankwise.adapters.contract import AdapterConfig, Resize
from rankwise.adapters.distributed import is_main
from rankwise.adapters.lora_method import LoraMethod


class ScriptedConfig(AdapterConfig):
    """Not registered. `plan`: step -> one rank per matrix, repeated over them; `first` likewise, before step 1.

    `dissent`: every process but the first wants other ranks, at other steps.
    """

    name: str = "scripted"
    plan: dict[int, tuple[int, ...]] = Field(default_factory=dict)
    first: tuple[int, ...] | None = None
    weight: float = 0.0
    dissent: bool = False

    def build(self, model, *, total_steps, seed):
        return Scripted(model, self, seed=seed) if self.first is None else Prepared(model, self, seed=seed)


class _Base(LoraMethod):
    def __init__(self, model, config, *, seed):
        super().__init__(model, config, seed=seed)
        self.config = config

    def wanted(self, ranks):
        live = self.rank_pattern()
        chosen = {name: ranks[i % len(ranks)] if live[name] else 0 for i, name in enumerate(self.matrices)}
        return Resize(chosen, {name: float(rank) for name, rank in chosen.items()})

    def after_optimizer_step(self, step):
        if self.config.dissent and not is_main():
            return None if step in (2, 6) else self.wanted((5, 4))
        return self.wanted(self.config.plan[step]) if step in self.config.plan else None

    def penalty(self):
        if not self.config.weight:
            return None
        adapters = (p for n, p in self.model.named_parameters() if ".lora_A." in n and p.requires_grad)
        return self.config.weight * sum(p.square().sum() for p in adapters)


@final
class Scripted(_Base):
    pass


@final
class Prepared(_Base):
    """Looks at two batches first."""

    def prepare(self, batches):
        self.seen = []
        for index, batch in enumerate(batches()):
            if index == 2:
                break
            self.seen.append(batch["input_ids"].tolist())
            self.model.train()
            self.model(**batch).loss.backward()
        return self.wanted(self.config.first)


def scripted(model=None, *, total_steps=12, seed=0, **fields):
    fields = {"budget": "r=2"} | fields
    return ScriptedConfig(**fields).build(model or tiny_model(), total_steps=total_steps, seed=seed)
