// What follows a multiply: a scalar function of the sum, its row and its column, which every way to multiply calls.
#pragma once

#include "activation.cuh"
#include "rows.cuh"

namespace denoise {

/// A view that is broadcast to the result: rows by their number, columns by a step.
struct Operand2d {
    const void* data;
    RowMap rows;
    int64_t step;

    explicit Operand2d(const View& view) : data(view.data), rows(view), step(view.stride(0)) {}
    template <class T> __device__ float at(uint32_t row, uint32_t column) const {
        return widen(static_cast<const T*>(data)[rows.offset(row) + int64_t(column) * step]);
    }
};

/// The arguments of residual + gate * act(alpha * sum + bias).
struct Epilogue {
    float alpha;
    const float* bias;
    schema::Activation activation;
    Operand2d gate, residual;
    /// The result, of a dense last axis.
    void* out;
    RowMap out_rows;

    /// A result with nothing but its sums.
    explicit Epilogue(const View& out)
        : alpha(1.0f), bias(nullptr), activation(schema::Activation::none), gate(absent()), residual(absent()),
          out(out.data), out_rows(out) {}

    static Operand2d absent() { return Operand2d(View{}); }
};

/// The result of a sum, given what its place has of bias, gate and residual.
__device__ inline float epilogue(const Epilogue& e, float sum, float bias, float gate, float residual) {
    float y = activate(e.activation, e.alpha * sum + bias);
    if (e.gate.data) y *= gate;
    if (e.residual.data) y += residual;
    return y;
}

/// The same, which finds them. Gate, residual and result are of T.
template <class T> __device__ float epilogue(const Epilogue& e, float sum, uint32_t row, uint32_t column) {
    const float bias = e.bias ? e.bias[column] : 0.0f;
    const float gate = e.gate.data ? e.gate.at<T>(row, column) : 1.0f;
    const float residual = e.residual.data ? e.residual.at<T>(row, column) : 0.0f;
    return epilogue(e, sum, bias, gate, residual);
}

/// Writes the result of a sum.
template <class T> __device__ void finish(const Epilogue& e, float sum, uint32_t row, uint32_t column) {
    static_cast<T*>(e.out)[e.out_rows.offset(row) + column] = narrow<T>(epilogue<T>(e, sum, row, column));
}

} // namespace denoise
