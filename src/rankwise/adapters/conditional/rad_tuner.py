"""PEFT's tuner for RAD-LoRA with decisions per module."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import _get_in_out_features
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from rankwise.adapters.conditional.cogalora import OPEN_AT_FIRST
from rankwise.adapters.conditional.config import ConditionalPeftConfig
from rankwise.adapters.conditional.rad_bank import (
    BANKS,
    Bank,
    Sizes,
    Window,
    fill_banks,
    first_bound,
    smallest_banks,
    spread_windows,
)
from rankwise.adapters.conditional.rad_cache import CacheReport, DecisionCache
from rankwise.adapters.conditional.rad_config import RadloraPeftConfig
from rankwise.adapters.conditional.rad_hyper import HYPER, Fixed, Hyper
from rankwise.adapters.conditional.rad_layer import RadloraVariant, router_outputs
from rankwise.adapters.conditional.register import register
from rankwise.adapters.conditional.router import Router, router_cost
from rankwise.adapters.conditional.tuner import ROUTER, ConditionalModel


class RadloraModel(ConditionalModel):
    """PEFT's tuner for `RADLORA`."""

    def condition(self, layer: LoraLayer, adapter_name: str, config: ConditionalPeftConfig, name: str) -> None:
        """See `ConditionalModel.condition`."""
        config = cast(RadloraPeftConfig, config)
        cache = self._cache(adapter_name, config) if config.cache else None
        layer.lora_variant[adapter_name] = RadloraVariant(self.context, config, name, cache)
        router = Router(layer.in_features, config.router_hidden, router_outputs(config.r, config.generator))
        with torch.no_grad():
            router.up_bias[0] = OPEN_AT_FIRST
        self.put(layer, ROUTER, adapter_name, router)
        if config.generator == "hyper":
            self._generated(layer, adapter_name, config)
        else:
            self._shared(layer, adapter_name, config, name)

    def cache_report(self, adapter_name: str = "default") -> CacheReport:
        """What an adapter's cache of decisions has done.

        Raises:
            ValueError: it has none.
        """
        if adapter_name not in self.caches:
            raise ValueError(f"adapter '{adapter_name}' remembers no decisions: its config has no cache")
        return self.caches[adapter_name].report()

    @property
    def caches(self) -> dict[str, DecisionCache]:
        """By adapter."""
        found: dict[str, DecisionCache] = self.__dict__.setdefault("_caches", {})
        return found

    def delete_adapter(self, adapter_name: str) -> None:
        """PEFT's; the adapter's cache goes too."""
        super().delete_adapter(adapter_name)
        if adapter_name in self.caches:
            self.caches.pop(adapter_name).hook.remove()

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:  # noqa: ANN401 - PEFT's
        base = super()._unload_and_optionally_merge(*args, **kwargs)
        for cache in self.caches.values():
            cache.hook.remove()
        return base

    def _cache(self, adapter_name: str, config: RadloraPeftConfig) -> DecisionCache:
        if adapter_name not in self.caches:
            self.caches[adapter_name] = DecisionCache(self.model, config)
        return self.caches[adapter_name]

    def _generated(self, layer: LoraLayer, adapter_name: str, config: RadloraPeftConfig) -> None:
        sizes = layer.in_features, layer.out_features
        hyper = Hyper(*sizes, config.r, config.generator_rank, zero=bool(config.init_lora_weights))
        self.put(layer, HYPER, adapter_name, hyper)
        layer.lora_A[adapter_name], layer.lora_B[adapter_name] = Fixed(hyper, 0), Fixed(hyper, 1)

    def _shared(self, layer: LoraLayer, adapter_name: str, config: RadloraPeftConfig, name: str) -> None:
        if config.windows is None:
            sizes = self._sizes(config)
            config.banks = config.banks or default_banks(sizes, config)
            for module, size in sizes.items():
                _banks_of(config.banks, module, size)
            config.windows = spread_windows(sizes, config.banks)
        if name not in config.windows:
            raise ValueError(
                f"the config's windows are of another model: there is none for '{name}'; leave windows and banks out"
            )
        _check_window(config, name, _banks_of(config.banks or {}, name, (layer.in_features, layer.out_features)))
        a, b = (self._bank(layer, adapter_name, config, side) for side in BANKS)
        first_a, first_b = config.windows[name]
        layer.lora_A[adapter_name] = Window(a, first_a, config.r, transposed=False)
        layer.lora_B[adapter_name] = Window(b, first_b, config.r, transposed=True)

    def _bank(self, layer: LoraLayer, adapter_name: str, config: RadloraPeftConfig, side: str) -> Bank:
        """The bank that serves this side of a layer; made and put on the layer if it is the first."""
        width, container = layer.in_features if side == "in" else layer.out_features, BANKS[side]
        for other in self.model.modules():
            banks = getattr(other, container, {}) if isinstance(other, LoraLayer) else {}
            if adapter_name in banks and banks[adapter_name].weight.shape[1] == width:
                return cast(Bank, banks[adapter_name])
        assert config.banks
        bound = first_bound(side, width, config.r, bool(config.init_lora_weights))
        bank = Bank(config.banks[f"{side} {width}"], width, bound)
        self.put(layer, container, adapter_name, bank)
        return bank

    def _sizes(self, config: RadloraPeftConfig) -> Sizes:
        """(in, out) of the modules that PEFT adapts, in model order."""
        found = {}
        for name, module in self.model.named_modules():
            if ".base_layer" in name or ".lora_" in name or not self._check_target_module_exists(config, name):
                continue
            base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
            found[name] = _get_in_out_features(base)
        return found


def _banks_of(banks: Mapping[str, int], name: str, size: tuple[int, int]) -> dict[str, int]:
    """The two banks that a module of `size` (in, out) sees, with their components.

    Raises:
        ValueError: one of them is missing.
    """
    wanted = [f"{side} {width}" for side, width in zip(BANKS, size, strict=True)]
    if missing := [bank for bank in wanted if bank not in banks]:
        raise ValueError(
            f"the config's banks are {', '.join(banks) or 'none'}, and '{name}' needs `{missing[0]}`: they are of "
            "another model; leave banks and windows out"
        )
    return {bank: banks[bank] for bank in wanted}


def _check_window(config: RadloraPeftConfig, name: str, banks: Mapping[str, int]) -> None:
    """A module's window must begin within its own banks, which may be smaller than those of other widths.

    Raises:
        ValueError: it does not.
    """
    assert config.windows is not None
    for first, (bank, components) in zip(config.windows[name], banks.items(), strict=True):
        if first >= components:
            raise ValueError(
                f"the window of '{name}' begins at component {first} of bank `{bank}`, which has 0 to "
                f"{components - 1}; leave banks and windows out, or restore them"
            )


def routers_cost(sizes: Sizes, rank: int, hidden: int, generator: str) -> int:
    """Parameters of the routers of these modules."""
    outputs = router_outputs(rank, generator)
    return sum(router_cost(width, hidden, outputs) for width, _ in sizes.values())


def default_banks(sizes: Sizes, config: RadloraPeftConfig) -> dict[str, int]:
    """Banks that bring the whole adapter to half of what plain adapters of rank r take, or the smallest there are."""
    half = config.r * sum(map(sum, sizes.values())) // 2
    left = half - routers_cost(sizes, config.r, config.router_hidden, config.generator)
    return fill_banks(sizes, config.r, max(left, smallest_banks(sizes, config.r)))


register(RadloraPeftConfig.TYPE, RadloraPeftConfig, RadloraModel)
