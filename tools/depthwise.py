"""Depthwise convolution for training on a CPU: the same sums as Paddle's, four times as fast.

Paddle's CPU kernel runs one tiny matrix product a channel, a few hundred million multiplications a second, and took
four fifths of a training step. Here a channel's images stand on top of each other as one tall padded picture; OpenCV
filters it (forward, and backward to the input), and the gradient of the filter is read off the diagonals of a product
of two such pictures. Exported models hold an ordinary convolution.
"""

from __future__ import annotations

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

LARGEST_TILE = 22  # columns a product: wider ones compute more beside the diagonals, narrower ones are many calls


class Depthwise(nn.Conv2D):
    """Depthwise convolution kxk, k odd, stride 1, padded to the same size, without bias."""

    def __init__(self, width: int, kernel: int):
        if kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}, expected an odd side")
        super().__init__(width, width, kernel, padding=kernel // 2, groups=width, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        if paddle.in_dynamic_mode() and x.dtype == paddle.float32 and x.place.is_cpu_place():
            return _Depthwise.apply(x, self.weight)
        return F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2, groups=x.shape[1])


def _stacked(x: np.ndarray, border: int) -> np.ndarray:
    """(B, C, H, W) -> (C, B * (H + 2 border), W + 2 border), the border zero."""
    batch, channels, height, width = x.shape
    out = np.zeros((channels, batch, height + 2 * border, width + 2 * border), np.float32)
    out[:, :, border : border + height, border : border + width] = x.transpose(1, 0, 2, 3)
    return out.reshape(channels, -1, width + 2 * border)


def _correlate(tall: np.ndarray, filters: np.ndarray, batch: int) -> np.ndarray:
    """`tall` of `_stacked` with each channel's filter (C, k, k) -> (B, C, H, W)."""
    border = filters.shape[-1] // 2
    out = np.empty_like(tall)
    for channel in range(len(tall)):
        cv2.filter2D(tall[channel], cv2.CV_32F, filters[channel], dst=out[channel], borderType=cv2.BORDER_CONSTANT)
    channels, rows, columns = tall.shape
    inner = out.reshape(channels, batch, rows // batch, columns)[:, :, border:-border, border:-border]
    return np.ascontiguousarray(inner.transpose(1, 0, 2, 3))


def _filter_gradient(tall: np.ndarray, gradient: np.ndarray, side: int) -> np.ndarray:
    """Gradient (C, k, k): sums over all places of input at an offset times output gradient."""
    batch, channels, height, width = gradient.shape
    border = side // 2
    above = np.zeros((channels, batch, height + 2 * border, width), np.float32)
    above[:, :, :height] = gradient.transpose(1, 0, 2, 3)
    rows = batch * (height + 2 * border) - 2 * border
    above = above.reshape(channels, -1, width)[:, :rows]  # (C, rows, W)
    tile = max(t for t in range(1, LARGEST_TILE + 1) if width % t == 0)
    out = np.empty((channels, side, side), np.float32)
    for y in range(side):
        below = tall[:, y : y + rows]  # (C, rows, W + 2 border)
        products = sum(
            np.matmul(below[:, :, left : left + tile + 2 * border].transpose(0, 2, 1), above[:, :, left : left + tile])
            for left in range(0, width, tile)
        )  # (C, tile + 2 border, tile)
        for x in range(side):
            out[:, y, x] = np.trace(products[:, x : x + tile], axis1=1, axis2=2)
    return out


class _Depthwise(paddle.autograd.PyLayer):  # type: ignore[misc]
    @staticmethod
    def forward(ctx, x, weight):  # type: ignore[no-untyped-def]
        filters = weight.numpy()[:, 0]  # (C, k, k)
        tall = _stacked(x.numpy(), filters.shape[-1] // 2)
        ctx.filters, ctx.tall, ctx.frozen = filters, tall, (x.stop_gradient, weight.stop_gradient)
        ctx.frozen = weight.stop_gradient
        return paddle.to_tensor(_correlate(tall, filters, x.shape[0]))

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        values, side = gradient.numpy(), ctx.filters.shape[-1]
        turned = np.ascontiguousarray(ctx.filters[:, ::-1, ::-1])
        to_input = _correlate(_stacked(values, side // 2), turned, len(values))
        if ctx.frozen:  # an attack asks for the gradient of the image alone, and the filter's takes longer
            return paddle.to_tensor(to_input), None
        to_filter = _filter_gradient(ctx.tall, values, side)
        return paddle.to_tensor(to_input), paddle.to_tensor(to_filter[:, None])
