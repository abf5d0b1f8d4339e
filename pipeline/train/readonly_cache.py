"""A context's cache that can be read any number of times, with gradients, and never changes.

An ordinary cache breaks the gradient phase twice over. Recurrent layers (gated delta net, Mamba)
write their new state into the buffer that autograd saved, so backward fails; and every layer moves
on by the tokens it was shown, so a second continuation would follow the first. Here each update
runs, in the cache layer's own code, on a copy that is thrown away.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

READABLE_LAYERS = frozenset(
    {
        "DynamicLayer",
        "DynamicSlidingWindowLayer",
        "DynamicIndexedLayer",
        "LinearAttentionLayer",
        "LinearAttentionAndFullAttentionLayer",
        "LinearAttentionAndSlidingWindowAttentionLayer",
        "DummyLayer",
    }
)
"""Cache layers of transformers 5.16 to 5.24 whose every write goes through the methods below."""


class ReadOnlyCache(Cache):
    """View of a filled cache for one forward pass over continuations.

    Args:
        source: cache of G contexts, made by a forward pass; nothing changes it, backward included.
        rows: int64 [K], the context that each continuation follows; default: one each, in order.

    Attention layers are expanded to K rows one layer at a time, when the model asks for them, so
    that the whole cache is never held K times.
    """

    def __init__(self, source: Cache, rows: Tensor | None = None) -> None:
        self._rows: Any = rows
        super().__init__(layers=[self._expand_states(layer) for layer in source.layers])

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the context's keys and values followed by the new ones; keep nothing."""
        layer = self._expand_keys(self.layers[layer_idx])
        return layer.update(key_states, value_states, *args, **kwargs)

    def update_indexer(self, indexer_key_states: Tensor, layer_idx: int) -> Tensor:
        """Return the context's sparse-attention index keys and the new ones; keep nothing."""
        return self._expand_keys(self.layers[layer_idx]).update_indexer(indexer_key_states)

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """Return a convolution's last inputs in the context and the new ones; keep nothing."""
        layer = _copy_layer(self.layers[layer_idx])
        return layer.update_conv_state(conv_states, state_idx, **kwargs)

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        """Return the new state as it came; keep nothing."""
        del layer_idx, state_idx, kwargs
        return recurrent_states

    def _expand_states(self, layer: Any) -> Any:
        """Return ``layer`` with its recurrent states as K rows (models also read them directly)."""
        if self._rows is None or not isinstance(layer, LinearAttentionCacheLayerMixin):
            return layer
        expanded = _copy_layer(layer)
        LinearAttentionCacheLayerMixin.reorder_cache(expanded, self._rows)
        return expanded

    def _expand_keys(self, layer: Any) -> Any:
        """Return a copy of ``layer`` with its keys and values as K rows."""
        expanded = _copy_layer(layer)
        if self._rows is None:
            return expanded
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            CacheLayerMixin.reorder_cache(expanded, self._rows)
        else:
            expanded.reorder_cache(self._rows)
        return expanded


def _copy_layer(layer: Any) -> Any:
    """Return a copy whose updates leave ``layer`` as it is.

    Keys and values are replaced on update, so sharing them is safe; states sit in dicts of buffers
    that are written in place, so those are copied.
    """
    copied = copy.copy(layer)
    for name, value in vars(layer).items():
        if isinstance(value, dict):
            setattr(copied, name, {key: _clone(state) for key, state in value.items()})
    return copied


def _clone(state: Any) -> Any:
    return state.clone() if isinstance(state, Tensor) else state
