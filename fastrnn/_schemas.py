"""The operators' schemas. The build reads them too, without torch."""

from __future__ import annotations

import hashlib

# With weight_hr [P, H] the output is [N, P], and h is the first P units of its state [B, H] (zeros
# follow in state_n). gains: those of layer normalisation one after the other, [2*G*H], an LSTM's
# [2*G*H + 2*H]; `LayerNorm.joined` makes them.
_INPUTS = (
    "Tensor input, Tensor state, Tensor? weight_ih, Tensor weight_hh, "
    "Tensor? bias_ih, Tensor? bias_hh, Tensor? weight_hr, Tensor? gains"
)
# Everything about a recurrence that no gradient flows to.
_ROWS = "Tensor batch_sizes, Tensor? resets, Tensor? seed, Tensor? sequences, float[] zoneout"
_BOTH_INPUTS = "Tensor input" + "".join(
    f", Tensor state{way}, Tensor weight_ih{way}, Tensor weight_hh{way}, "
    f"Tensor? bias_ih{way}, Tensor? bias_hh{way}"
    for way in ("", "_reverse")
)
_BOTH_ROWS = (
    "Tensor batch_sizes, Tensor? resets, Tensor? resets_reverse, Tensor? seed, "
    "Tensor? seed_reverse, Tensor? sequences, float[] zoneout"
)
_ATTENTION = "Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? seed"
_ATTENTION_OPTIONS = "bool is_causal, float dropout_p, float scale"
SCHEMAS = (
    f"recurrence({_INPUTS}, {_ROWS}, str cell, bool reverse, bool save)"
    " -> (Tensor output, Tensor state_n, Tensor cells, Tensor reserve)",
    "recurrence_backward(Tensor? grad_output, Tensor? grad_state_n, Tensor? grad_cells, "
    f"{_INPUTS}, {_ROWS}, Tensor output, Tensor cells, Tensor reserve, "
    "str cell, bool reverse, bool input_grad, bool weight_grad)"
    " -> (Tensor grad_input, Tensor grad_state, Tensor grad_weight_ih, Tensor grad_weight_hh,"
    " Tensor grad_bias_ih, Tensor grad_bias_hh, Tensor grad_weight_hr, Tensor grad_gains)",
    # Both directions of a layer: the results of `recurrence` for the one, then for the other.
    f"recurrence_both({_BOTH_INPUTS}, {_BOTH_ROWS}, str cell, bool save)"
    " -> (Tensor output, Tensor state_n, Tensor cells, Tensor reserve, Tensor output_reverse,"
    " Tensor state_n_reverse, Tensor cells_reverse, Tensor reserve_reverse)",
    "recurrence_both_backward(Tensor? grad_output, Tensor? grad_state_n, Tensor? grad_cells, "
    "Tensor? grad_output_reverse, Tensor? grad_state_n_reverse, Tensor? grad_cells_reverse, "
    f"{_BOTH_INPUTS}, {_BOTH_ROWS}, Tensor output, Tensor cells, Tensor reserve, "
    "Tensor output_reverse, Tensor cells_reverse, Tensor reserve_reverse, "
    "str cell, bool input_grad, bool weight_grad)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,"
    " Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    # Layers of one direction, one above the other: each one's state, weight_ih, weight_hh and, with
    # `bias`, bias_ih, bias_hh; the results of `recurrence` for each.
    "recurrence_stack(Tensor input, Tensor[] layers, Tensor batch_sizes, Tensor? resets, "
    "str cell, bool bias, bool save) -> Tensor[]",
    # The gradients of the last layer's output and cells, and of all last states or of none; saved:
    # each layer's output, cells and reserve. The gradients of `input` and `layers`; one that is not
    # wanted is empty.
    "recurrence_stack_backward(Tensor? grad_output, Tensor? grad_cells, Tensor[] grad_state_n, "
    "Tensor input, Tensor[] layers, Tensor batch_sizes, Tensor? resets, Tensor[] saved, "
    "str cell, bool bias, bool input_grad, bool state_grad, bool weight_grad) -> Tensor[]",
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, "
    "int ignore_index, float label_smoothing, bool mean, bool bfloat16, bool gradients)"
    " -> (Tensor losses, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    f"masked_attention({_ATTENTION}, {_ATTENTION_OPTIONS}) -> (Tensor output, Tensor logsumexp)",
    f"masked_attention_backward(Tensor grad_output, {_ATTENTION}, Tensor output, "
    f"Tensor logsumexp, {_ATTENTION_OPTIONS}, bool mask_grad)"
    " -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_mask)",
    # Inference with weights packed beforehand: what packing gives is for this process only.
    "pack_weights(Tensor weight_ih, Tensor weight_hh, Tensor? weight_hr, str cell)"
    " -> Tensor packed",
    # proj_size: P, or 0 without a projection.
    "recurrence_packed(Tensor input, Tensor state, Tensor packed, Tensor? bias_ih, "
    f"Tensor? bias_hh, Tensor? gains, {_ROWS}, str cell, int proj_size, bool reverse, "
    "bool return_cells) -> (Tensor output, Tensor state_n, Tensor cells)",
    # Plain layers one above the other over rows [T, B, I]: S states [L*D, B, H] with D directions,
    # or none for zeros; of each layer and direction weight_ih and weight_hh, or both packed, and
    # with `bias` bias_ih and bias_hh. Or one step of a cell: rows [B, I], states [B, H]. The output
    # [T, B, D*H] and the last states; with `save` also each one's cells, reserve and output, but
    # for the last of these where it is the first result, of one direction.
    "recurrence_layers(Tensor input, Tensor[] states, Tensor[] weights, int hidden_size, str cell, "
    "bool bidirectional, bool bias, bool packed, bool save) -> Tensor[]",
    # saved: what `save` gave and, of one direction, the output; grad_states: S or none. The
    # gradients of `input`, `states` and `weights`; one that is not wanted is empty.
    "recurrence_layers_backward(Tensor? grad_output, Tensor[] grad_states, Tensor input, "
    "Tensor[] states, Tensor[] weights, Tensor[] saved, int hidden_size, str cell, "
    "bool bidirectional, bool bias, bool input_grad, bool state_grad, bool weight_grad)"
    " -> Tensor[]",
    # What `take_step` needs to take steps of L layers on states [L, S, B, H]; biases [L, 2, G*H],
    # gains [L, ...]. It points into these tensors' memory.
    "stepper(Tensor states, Tensor packed, Tensor? biases, Tensor? gains, float[] zoneout, "
    "str cell, int input_size, int proj_size) -> Tensor",
    # Its mask is a function of `seed`, one int64: the gradient's is the same.
    "dropout(Tensor input, Tensor seed, float p) -> Tensor",
    "cpu_instruction_set() -> str",
    # Processors that containers' limits allow; `root`: the folder that holds proc and sys.
    'cpu_allowed(str root="") -> int',
    "cpu_peak(int bytes=4) -> float",
    "cpu_bandwidth(Tensor memory) -> float",
    "cpu_barrier() -> float",
    "cuda_device(int index) -> int[]",
    "use_cuda_schedule(str name) -> ()",
    "cuda_launch_failure(int device, str launch) -> str",
    "use_cuda_tf32(bool allowed) -> ()",
    "cuda_barriers(Tensor(a!) space, int cluster, int rounds) -> ()",
)
# Kernels take arguments by place: with those of other schemas they would read what is not there.
DIGEST = hashlib.sha256("\n".join(SCHEMAS).encode()).hexdigest()[:12]
