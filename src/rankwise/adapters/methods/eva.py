"""EVA (Paischer et al. 2024, arXiv 2410.07170), PEFT's own: ranks and `lora_A` from the activations.

Before the first step, training batches run through the base model. PEFT keeps an incremental SVD of what every matrix
is given, until its components stop turning (cosine similarity `tau`), and ranks all components by the share of variance
they explain; the best, at most `rho` times the mean rank in one matrix, become the rows of `lora_A`. `lora_B` is zero.

PEFT counts ranks, the comparison counts parameters. PEFT is therefore asked for enough ranks that what it picks costs
at least the budget, and its ranks are cut in proportion to spend exactly that; every matrix keeps its leading
components. Matrices without any lose their adapter. Until then `lora_A` and `lora_B` have room for whatever may be
chosen: nothing is trained at those ranks, and the peak does not count them.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Literal, final

import torch
from peft import EvaConfig as PeftEvaConfig
from peft import LoraConfig
from peft.tuners.lora.eva import get_eva_state_dict
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.contract import METHODS, AdapterConfig, Batches, ParameterCount, Resize
from rankwise.adapters.distributed import broadcast_object
from rankwise.adapters.lora_method import LoraMethod
from rankwise.allocation.budget import Target, allocate, spent
from rankwise.errors import AllocationError, BudgetError, DataError

OVERSAMPLING = 2
"""PEFT's low-rank SVD works with twice the components it keeps; inputs need as many features and tokens."""
MOST_BATCHES = 10_000
"""Forward passes after which components that still turn are given up."""
IGNORED = -100
"""Label of tokens that take no part in a loss (Transformers' convention)."""


@METHODS.register("eva")
class EvaConfig(AdapterConfig):
    """Ranks and start of lora_A from the activations, before training (PEFT's EVA; control)."""

    name: Literal["eva"] = "eva"
    rho: float = Field(default=2.0, ge=1, description="largest rank of a matrix over the mean rank; 1 keeps it uniform")
    tau: float = Field(
        default=0.99, ge=0, lt=1, description="cosine similarity between two updates at which a component has converged"
    )

    def build(self, model: nn.Module, *, total_steps: int, seed: int) -> "Eva":
        """Wrap the model with room for what `prepare` will choose.

        Raises:
            BudgetError: more components are needed than PEFT can find in inputs as narrow as this model's.
        """
        return Eva(model, self, seed=seed)


@final
class Eva(LoraMethod):
    """Decides once, in `prepare`."""

    config: EvaConfig

    def __init__(self, model: nn.Module, config: EvaConfig, *, seed: int) -> None:
        self.prepared = False
        super().__init__(model, config, seed=seed)
        self.peak = 0

    def start_ranks(self, target: Target) -> dict[str, int]:
        """Room for the most components that `prepare` may keep."""
        self.most_components = min(m.in_features for m in self.matrices.values()) // OVERSAMPLING
        price = 1 if target.unit == "ranks" else sum(self.costs.values()) / len(self.costs)
        cheapest = 1 if target.unit == "ranks" else min(self.costs.values())
        self.first_rank = math.ceil(target.total / len(self.costs) / price)
        # With so many ranks in all, the cheapest matrices alone hold the budget.
        self.last_rank = min(math.ceil(target.total / len(self.costs) / cheapest) + 1, self.most_components)
        if self.first_rank > self.last_rank:
            raise BudgetError(
                f"eva: the budget is a mean rank of {self.first_rank}, but PEFT finds at most {self.most_components} "
                f"components in the narrowest input, {self.most_components * OVERSAMPLING} wide; lower the budget"
            )
        room = self._components_for(self.last_rank)
        return {name: min(room, matrix.full_rank) for name, matrix in self.matrices.items()}

    def prepare(self, batches: Batches) -> Resize | None:
        """Run training batches through the base model and take up PEFT's ranks and components.

        Raises:
            DataError: the training data has fewer tokens than components are asked for.
            AllocationError: the components do not converge, or PEFT's ranks cannot be cut to the budget.
        """
        components, ranks = self._decide(batches)
        with torch.no_grad():
            for name, layer in adapted_layers(self.model).items():
                weight = layer.lora_A[ADAPTER].weight
                weight[: ranks[name]] = components[name][: ranks[name]].to(weight)
        self.prepared = True
        scores = {name: float(found.shape[0]) for name, found in components.items()}
        return Resize(ranks, scores, kept={name: range(rank) for name, rank in ranks.items()})

    def before_optimizer_step(self, step: int) -> None:
        """Nothing is trained before the ranks are known.

        Raises:
            AllocationError: `prepare` was never called.
        """
        if not self.prepared:
            raise AllocationError(_never_prepared())

    def parameter_count(self) -> ParameterCount:
        """Adapter parameters; before `prepare`, those of the budget."""
        if self.prepared:
            return super().parameter_count()
        total = self.target.total if self.target.unit == "parameters" else spent(self.rank_pattern(), self.costs)
        return ParameterCount(total, total)

    def check_finished(self) -> None:
        """`prepare` was called, and the budget is spent to the last parameter."""
        if not self.prepared:
            raise AllocationError(_never_prepared())
        ranks = self.rank_pattern()
        total = sum(ranks.values()) if self.target.unit == "ranks" else spent(ranks, self.costs)
        if total != self.target.total:
            raise AllocationError(f"eva ended at {total:,} {self.target.unit}, its budget is {self.target.total:,}")

    def state_dict(self) -> dict[str, Tensor]:
        """Weights, and whether the ranks are known."""
        return super().state_dict() | {"rankwise.prepared": torch.tensor(self.prepared)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up weights and ranks."""
        super().load_state_dict(state)
        self.prepared = bool(state["rankwise.prepared"])

    def _components_for(self, rank: int) -> int:
        """Most components of one matrix when PEFT is asked for a mean rank of `rank`."""
        return min(round(rank * self.config.rho), self.most_components)

    def _decide(self, batches: Batches) -> tuple[dict[str, Tensor], dict[str, int]]:
        """PEFT's components (rank, in) by name, and the ranks that spend the budget."""
        held: dict[int, int] = {}
        rank = self.first_rank
        while rank <= self.last_rank:
            found = broadcast_object(self._ask(batches, rank))
            caps = {n: min(found[n].shape[0], self.matrices[n].full_rank) for n in self.matrices}
            held[rank] = sum(caps.values()) if self.target.unit == "ranks" else spent(caps, self.costs)
            try:
                scores = {name: float(cap) for name, cap in caps.items()}
                return found, allocate(scores, self.costs, self.target, floor=0, cap=caps)
            except BudgetError:  # too few, or no way to spend exactly the budget
                wanted = rank * self.target.total // held[rank]
                rank = max(rank + 1, min(wanted, self.last_rank))
        raise AllocationError(
            f"eva: the budget is {self.target.total:,} {self.target.unit}, but the components that PEFT picked for a "
            f"mean rank of {max(held)} cost {held[max(held)]:,}, of which no part costs exactly that; raise rho, or "
            "lower the budget"
        )

    def _ask(self, batches: Batches, rank: int) -> dict[str, Tensor]:
        """PEFT's EVA for a mean rank of `rank`: components (rank of the matrix, in) by name, on the CPU."""
        most = self._components_for(rank)
        eva = PeftEvaConfig(rho=most / rank, tau=self.config.tau, label_mask_value=IGNORED)
        asked = LoraConfig(r=rank, init_lora_weights="eva", eva_config=eva)
        training, passes = self.model.training, 0

        def forward(model: nn.Module, inputs: dict[str, Tensor]) -> None:
            nonlocal passes
            passes += 1
            if passes > MOST_BATCHES:
                raise AllocationError(
                    f"eva: after {MOST_BATCHES:,} batches the components still turn; lower tau ({self.config.tau})"
                )
            model(**inputs)

        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                data = _LargeBatches(batches, most * OVERSAMPLING, padding=self._padding())
                state = get_eva_state_dict(
                    self.model,
                    data,
                    asked,
                    forward_fn=forward,
                    gather_distributed_inputs=False,  # every process is given the same batches
                    show_progress_bar=False,
                )
            finally:
                self.model.train(training)
        return {name.removeprefix("base_model.model."): found.cpu() for name, found in state.items()}

    def _padding(self) -> int:
        return getattr(self.model.config, "pad_token_id", None) or 0


class _LargeBatches:
    """Training batches joined until each has the tokens that an SVD needs, without labels of whole examples.

    PEFT asks an iterable for its length to find out whether it is empty, which is told while iterating instead.
    """

    def __init__(self, batches: Batches, tokens: int, *, padding: int) -> None:
        self._batches, self._tokens, self._padding = batches, tokens, padding

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        seen, held, count = 0, [], 0
        for batch in self._batches():
            held.append(_token_inputs(batch))
            tokens = int(_counted(held[-1]).sum())
            seen, count = seen + tokens, count + tokens
            if count >= self._tokens:
                yield _join(held, self._padding)
                held, count = [], 0
        if seen < self._tokens:
            raise DataError(
                f"eva: the training data has {seen:,} tokens, and the SVD of its activations needs {self._tokens:,}; "
                "lower the budget or rho"
            )


def _token_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`batch` with a mask, and with labels only where every token has one (PEFT would compare them with the mask)."""
    ids = batch["input_ids"]
    kept = {key: value for key, value in batch.items() if key != "labels" or value.shape == ids.shape}
    return {"attention_mask": torch.ones_like(ids), **kept}


def _counted(batch: Mapping[str, Tensor]) -> Tensor:
    """Which tokens take part in the SVD."""
    mask = batch["attention_mask"].bool()
    return mask & (batch["labels"] != IGNORED) if "labels" in batch else mask


def _join(batches: list[dict[str, Tensor]], padding: int) -> dict[str, Tensor]:
    """One batch out of several; what belongs to tokens is padded on the right."""
    if len(batches) == 1:
        return batches[0]
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    filler = {"input_ids": padding, "labels": IGNORED}

    def padded(key: str, batch: Mapping[str, Tensor]) -> Tensor:
        value, ids = batch[key], batch["input_ids"]
        missing = longest - ids.shape[1]
        return functional.pad(value, (0, missing), value=filler.get(key, 0)) if value.shape == ids.shape else value

    return {key: torch.cat([padded(key, batch) for batch in batches]) for key in batches[0]}


def _never_prepared() -> str:
    return (
        "eva never chose its ranks: its `prepare` was not called before the first step; does the trainer have a "
        "RankwiseCallback?"
    )
