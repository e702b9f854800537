"""Matrix products of 16 bits in compiled blocks on CPUs: what a compiler asks for, asked for in a faster way.

Gradients of weights: `grad_NM.T @ input_NK` in bf16 runs at half the speed of the other two products of a
linear layer (1.1 against 2.1 TFLOP/s for 2,048 rows of 768 and 3,072 on two cores), since the library turns
its first factor round in slow steps. Turning the narrower of the two round first, as a compiled copy, takes a
tenth of the product's time and makes it as fast as the others; where it was the input, the result comes out
turned as well, which the conversion to the format of the weight sets right on its way.

Biases: a product with one first fills its result with it, and reads that again while it adds the product. A
sum of its own becomes part of the loop that follows anyway: a step of GPT-2 takes 1 to 2 % less.

The eager reference is the product itself; the switch is `LLMTRAIN_KERNELS=0`.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

LEAST_WIDTH = 384
"""Of the narrower factor; below, the copy takes as long as what it saves."""

LEAST_RATIO = 2
"""Of the wider to the narrower; the copy is worth it only where the product is much larger."""


@torch.library.custom_op(
    "llmtrain::product", mutates_args=(), tags=(torch.Tag.needs_contiguous_strides,), device_types="cpu"
)
def product(left: Tensor, right: Tensor) -> Tensor:
    """A matrix product whose factors a compiler has to lay out in memory as they were asked for."""
    return torch.mm(left, right)


@product.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])


def turns(num_rows: Any, num_inputs: Any, num_outputs: Any) -> bool:
    """Whether turning the narrower factor round is worth it for these sizes (a symbol is not a size)."""
    if not all(isinstance(size, int) for size in (num_rows, num_inputs, num_outputs)):
        return False
    narrow, wide = sorted((num_inputs, num_outputs))
    return bool(narrow >= LEAST_WIDTH and wide >= LEAST_RATIO * narrow and num_rows >= narrow)


def turns_hidden(hidden_ND: Tensor) -> bool:
    """Whether turning the input round is worth it for a projection onto very many outputs."""
    return hidden_ND.device.type == "cpu" and hidden_ND.itemsize == 2


def product_pass() -> Any:
    """A pass over graphs, for `torch._inductor.config.post_grad_custom_post_pass`."""
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class Products(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            if os.environ.get("LLMTRAIN_KERNELS") != "0":
                for node in list(graph.nodes):
                    rewrite(graph, node)

        def uuid(self) -> Any:
            return get_hash_for_files((__file__,)), os.environ.get("LLMTRAIN_KERNELS")

    return Products()


def rewrite(graph: fx.Graph, node: fx.Node) -> None:
    """Replace a product of 16 bits on a CPU where that is worth it."""
    if node.target not in (aten.mm.default, aten.addmm.default):
        return
    value = node.meta["val"]
    if value.device.type != "cpu" or value.itemsize != 2:
        return
    faster = weight_gradient if node.target is aten.mm.default else sum_with_bias
    with graph.inserting_before(node):
        result = faster(graph, node)
    if result is not None:
        node.replace_all_uses_with(result)
        graph.erase_node(node)


def sum_with_bias(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """`addmm(bias, left, right)` as a product and a sum."""
    bias, left, right = node.args
    assert isinstance(bias, fx.Node)
    if node.kwargs or bias.meta["val"].ndim != 1:
        return None  # not a layer's: factors of the two summands, or a matrix to add to
    return call(graph, aten.add.Tensor, call(graph, aten.mm.default, left, right), bias)


def weight_gradient(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """`mm(permute(grad), input)` with the narrower factor turned round first."""
    turned, inputs = node.args
    assert isinstance(turned, fx.Node)
    assert isinstance(inputs, fx.Node)
    if turned.target is not aten.permute.default:
        return None
    grad = turned.args[0]
    assert isinstance(grad, fx.Node)
    num_rows, num_outputs = grad.meta["val"].shape
    num_inputs = inputs.meta["val"].shape[1]
    if not turns(num_rows, num_inputs, num_outputs):
        return None
    if num_outputs <= num_inputs:
        return call(graph, torch.ops.llmtrain.product.default, contiguous(graph, turned), inputs)
    inputs_turned = contiguous(graph, call(graph, aten.permute.default, inputs, [1, 0]))
    result = call(graph, torch.ops.llmtrain.product.default, inputs_turned, grad)
    return call(graph, aten.permute.default, result, [1, 0])


def contiguous(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A copy in the usual order."""
    return call(graph, aten.clone.default, node, memory_format=torch.contiguous_format)


def call(graph: fx.Graph, target: Any, *arguments: Any, **more: Any) -> fx.Node:
    """A new node, with the value that inductor expects it to tell about."""
    node = graph.call_function(target, arguments, more)
    values = [one.meta["val"] if isinstance(one, fx.Node) else one for one in arguments]
    with values[0].fake_mode:
        node.meta["val"] = target(*values, **more)
    return node
