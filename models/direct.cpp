// Small convolutions of any stride and their transposes: float32, channels last, products summed as they are defined.
//
// The rows that a few rows of outputs read are copied into a frame of zeros; then up to HEIGHT outputs beside each other, times
// WIDTH vectors of filters, are summed in registers. Of a transposed convolution the outputs whose places leave the same rest by
// the stride, a phase of it, read the same weights, so that each phase is a convolution of stride 1. What an output gives doesn't
// depend on the others. Channels and filters: any number, of which the filters that don't fill a vector go by four.

#include "vectors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

namespace {

constexpr int FRAME = 1 << 14;  // floats of a frame, so that it and the weights of a few filters stay in the caches
constexpr int MOST_TAPS = 64;
constexpr int FEW = 4;  // filters that are summed at once where they don't fill a vector

struct Shape : Sizes {
    int images;

    int step() const { return transposed ? 1 : stride; }  // in the input, from an output of a phase to the next
    int phases() const { return transposed ? stride : 1; }
    int columns() const { return (filters + FEW - 1) / FEW * FEW; }  // of the weights
    // Outputs of a phase along a side, of the first phase if none is named, which has most.
    int of_a_phase(int length, int phase = 0) const { return (length - phase + phases() - 1) / phases(); }
};

// Where the outputs of each phase read, along a side, from step() times their number in the phase on; least and most of all.
struct Taps {
    std::vector<std::vector<int>> of;
    int least = std::numeric_limits<int>::max(), most = std::numeric_limits<int>::min();

    explicit Taps(const Shape &shape) : of(shape.phases()) {
        for (int phase = 0; phase < shape.phases(); ++phase)
            for (int k = 0; k < shape.kernel; ++k) {
                const int at = phase + shape.padding - k;
                if (shape.transposed && at % shape.stride) continue;
                of[phase].push_back(shape.transposed ? at / shape.stride : -at);
                least = std::min(least, of[phase].back());
                most = std::max(most, of[phase].back());
            }
    }
};

// A row of outputs of one phase: what it reads in the frame, and where it goes.
struct Row {
    const Shape &shape;
    const Finish &finish;
    const float *frame;
    const size_t *offsets;
    int taps, outputs;
    size_t pixel;  // the first output's first filter
    float *out;
};

// Vectors of N floats: HEIGHT outputs from output `first` on, times WIDTH vectors of filters from `filter` on. A function of its
// own, so that it has all registers to itself.
template <int N, int HEIGHT, int WIDTH>
__attribute__((noinline)) void outputs(const Row &row, const float *weights, int first, int filter) {
    const Shape &shape = row.shape;
    const size_t apart = static_cast<size_t>(shape.step()) * shape.channels;
    typename Vector<N>::Register sums[HEIGHT][WIDTH] = {}, each[WIDTH];
    for (int tap = 0; tap < row.taps; ++tap) {
        Rows<HEIGHT> x(row.frame + row.offsets[tap] + first * apart, apart);
        for (int channel = 0; channel < shape.channels; ++channel, weights += N * WIDTH, x.next()) {
            for (int j = 0; j < WIDTH; ++j) each[j] = load<N>(weights + j * N);
            for (int i = 0; i < HEIGHT; ++i)
                for (int j = 0; j < WIDTH; ++j) sums[i][j] += x[i] * each[j];
        }
    }
    const int real = std::min(N, shape.filters - filter);  // less than N: some of the few are none
    const size_t between = static_cast<size_t>(shape.phases()) * shape.filters, pixel = row.pixel + first * between;
#pragma GCC unroll 4
    for (int j = 0; j < WIDTH; ++j) {
        typename Vector<N>::Register y[HEIGHT];
#pragma GCC unroll 16  // else the sums go through memory
        for (int i = 0; i < HEIGHT; ++i) y[i] = sums[i][j];
        if (N > FEW || real == N)
            put<N>(row.finish, y, pixel, between, filter + j * N, row.out);
        else
            for (int k = 0; k < real; ++k) {
                Vector<1>::Register one[HEIGHT];
                for (int i = 0; i < HEIGHT; ++i) one[i] = Vector<1>::Register{y[i][k]};
                put<1>(row.finish, one, pixel, between, filter + k, row.out);
            }
    }
}

// All outputs of a row, in as few pieces as registers allow.
template <int N, int HEIGHT, int WIDTH>
void whole_row(const Row &row, const float *weights, int filter) {
    int first = 0;
    const auto piece = [&](auto height) {
        for (; first + height <= row.outputs; first += height) outputs<N, height, WIDTH>(row, weights, first, filter);
    };
    piece(std::integral_constant<int, HEIGHT>{});
    piece(std::integral_constant<int, 4>{});
    piece(std::integral_constant<int, 1>{});
}

// The rows of an image that the phases' rows from `first` to before `last` read, with zeros around.
float *framed(const Shape &shape, const Taps &taps, const float *image, int first, int last, int width) {
    const int height = shape.step() * (last - first - 1) + taps.most - taps.least + 1, top = shape.step() * first + taps.least;
    const size_t line = static_cast<size_t>(width) * shape.channels;
    const int left = std::clamp(-taps.least, 0, width), right = std::clamp(shape.width - taps.least, left, width);
    float *const frame = scratch(line * height);
    for (int i = 0; i < height; ++i) {
        float *const to = frame + i * line;
        const bool inside = top + i >= 0 && top + i < shape.height;
        const size_t begin = inside ? static_cast<size_t>(left) * shape.channels : line;
        const size_t end = inside ? static_cast<size_t>(right) * shape.channels : line;
        std::fill(to, to + begin, 0.f);
        if (inside) {
            const float *const from = image + (static_cast<size_t>(top + i) * shape.width + left + taps.least) * shape.channels;
            std::copy(from, from + (end - begin), to + begin);
        }
        std::fill(to + end, to + line, 0.f);
    }
    return frame;
}

// The phases' rows from `first` to before `last` of an image.
void block(const Shape &shape, const Taps &taps, const Finish &finish, const float *x, const float *weights, float *out, int image,
           int first, int last) {
    const int width = shape.step() * (shape.of_a_phase(shape.out_width) - 1) + taps.most - taps.least + 1;
    const float *const source = x + static_cast<size_t>(image) * shape.height * shape.width * shape.channels;
    const float *const frame = framed(shape, taps, source, first, last, width);
    size_t offsets[MOST_TAPS];
    Row row{shape, finish, nullptr, offsets, 0, 0, 0, out};
    for (int p = 0; p < shape.phases(); ++p)
        for (int q = 0; q < shape.phases(); ++q) {
            row.taps = 0;
            for (const int down : taps.of[p])
                for (const int right : taps.of[q])
                    offsets[row.taps++] = (static_cast<size_t>(down - taps.least) * width + right - taps.least) * shape.channels;
            row.outputs = shape.of_a_phase(shape.out_width, q);
            const size_t products = static_cast<size_t>(row.taps) * shape.channels;
            int filter = 0;
            const auto columns = [&](int count, int all, auto call) {
                for (; filter + count <= all; filter += count)
                    for (int i = first; i < std::min(last, shape.of_a_phase(shape.out_height, p)); ++i) {
                        const size_t line = static_cast<size_t>(image) * shape.out_height + shape.phases() * i + p;
                        row.pixel = (line * shape.out_width + q) * shape.filters;
                        row.frame = frame + static_cast<size_t>(shape.step()) * (i - first) * width * shape.channels;
                        call(row, weights + products * filter, filter);
                    }
            };
            columns(2 * LANES, shape.filters, whole_row<LANES, LANES / 2, 2>);
            columns(LANES, shape.filters, whole_row<LANES, LANES, 1>);
            columns(FEW, shape.columns(), whole_row<FEW, 12, 1>);
            weights += products * shape.columns();
        }
}

// So many rows of each phase at a time that their frame is small, that there is work for all threads, and that blocks are alike.
int rows_of_a_block(const Shape &shape, const Taps &taps, int threads) {
    const int rows = shape.of_a_phase(shape.out_height);
    const int line = (shape.step() * shape.of_a_phase(shape.out_width) + taps.most - taps.least) * shape.channels;
    const long fitting = std::max(1, FRAME / (line * shape.step()));
    const long share = std::max(1L, static_cast<long>(shape.images) * rows / (2L * threads));
    const long most = std::min(fitting, share), blocks = (rows + most - 1) / most;
    return static_cast<int>((rows + blocks - 1) / blocks);
}

}  // namespace

// weights: for each phase down, then right, (taps, channels, columns), columns being the filters filled up to a multiple of 4, of
// which two vectors, a vector or four lie together, in this order as long as there are so many.
void direct(const Sizes &sizes, const Finish &finish, const float *x, const float *weights, float *y, int images, int threads) {
    const Shape shape{sizes, images};
    const Taps taps(shape);
    const int rows = shape.of_a_phase(shape.out_height), size = rows_of_a_block(shape, taps, threads);
    const int blocks = (rows + size - 1) / size;
    const long all = static_cast<long>(images) * blocks;
    shared_out(all, threads, [&](long i) {
        const int first = static_cast<int>(i % blocks) * size;
        block(shape, taps, finish, x, weights, y, static_cast<int>(i / blocks), first, std::min(rows, first + size));
    });
}
