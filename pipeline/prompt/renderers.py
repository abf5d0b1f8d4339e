"""Models whose prompts a server does not render with their Jinja template.

Their template, where they have one, gives ids that the served model never sees, so a dialect refuses
them when it is made, not row by row.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import UsageError

# vLLM 0.33.0, vllm/config/model.py (by architecture; these are the model types of those),
# vllm/renderers/registry.py, and for gpt-oss vllm/renderers/online_renderer.py.
_VLLM_RENDERERS = {
    "gpt_oss": "Harmony encoder",
    "deepseek_v32": "deepseek_v32 renderer",
    "deepseek_v4": "deepseek_v4 renderer",
    "deepseek_v41": "deepseek_v41 renderer",
    "kimi_k3": "kimi_k3 renderer",
    "inkling_mm_model": "inkling renderer",
    "inkling_model": "inkling renderer",
    "kimi_audio": "kimi_audio tokenizer",
    "alpamayo2_super": "alpamayo2_super tokenizer",
}
# SGLang 0.5.23, srt/entrypoints/openai/chat_encoding.py. gpt-oss goes through its template there.
_SGLANG_RENDERERS = {
    "deepseek_v32": "dsv32 encoder",
    "deepseek_v4": "dsv4 encoder",
    "deepseek_v41": "dsv41 encoder",
    "kimi_k3": "kimi_k3 encoder",
    "inkling_mm_model": "inkling renderer",
    "inkling_model": "inkling renderer",
}


def vllm_renderer_without_jinja(model_type: str | None, folder: Path | None) -> str | None:
    """Return what vLLM renders this model with in place of its template, or None.

    vLLM knows a Mistral repository by its files: ``consolidated*.safetensors`` with ``tekken.json``
    or ``tokenizer.model.v*`` (vLLM 0.33.0, ``vllm/tokenizers/registry.py``). The folder may hold a
    tokenizer without weights, so only weights under other names speak against it.
    """
    if model_type in _VLLM_RENDERERS:
        return _VLLM_RENDERERS[model_type]
    if folder is None or not [*folder.glob("tekken.json"), *folder.glob("tokenizer.model.v*")]:
        return None
    weights = [path.name for path in folder.glob("*.safetensors")]
    if weights and not any(name.startswith("consolidated") for name in weights):
        return None
    return "mistral renderer (mistral-common)"


def sglang_renderer_without_jinja(model_type: str | None) -> str | None:
    """Return what SGLang renders this model with in place of its template, or None."""
    return _SGLANG_RENDERERS.get(model_type or "")


def refuse_renderer(server: str, model_type: str | None, renderer: str) -> UsageError:
    """Return the error for a model whose renderer this package does not have."""
    return UsageError(
        f"server: {server} does not render model type {model_type!r} with its chat template but with "
        f"its {renderer}, which is not reproduced here; give rendered prompts (raw context), the "
        "server's sampled ids (context_ids, continuation_ids), or server: plain if your server does "
        "use the template"
    )
