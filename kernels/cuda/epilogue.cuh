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

/// The result of a sum. Gate, residual and result are of T.
template <class T> __device__ float epilogue(const Epilogue& e, float sum, uint32_t row, uint32_t column) {
    float y = e.alpha * sum;
    if (e.bias) y += e.bias[column];
    y = activate(e.activation, y);
    if (e.gate.data) y *= e.gate.at<T>(row, column);
    if (e.residual.data) y += e.residual.at<T>(row, column);
    return y;
}

/// Writes the result of a sum.
template <class T> __device__ void finish(const Epilogue& e, float sum, uint32_t row, uint32_t column) {
    static_cast<T*>(e.out)[e.out_rows.offset(row) + column] = narrow<T>(epilogue<T>(e, sum, row, column));
}

} // namespace denoise
