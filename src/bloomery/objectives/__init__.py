"""Pure math on tensors: no configuration, no state, nothing distributed.

Every `[B, T]` tensor is aligned with `tokens`: entry `t` describes `tokens[b, t]`. A mask is True where
a thing counts. Functions return per-token, per-pair or per-ranking values; `token.aggregate` reduces.
"""
