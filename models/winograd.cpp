// 3 x 3 convolutions of stride 1 with one pixel of padding: float32, channels last, by Winograd's F(4 x 4, 3 x 3).
//
// An output tile of 4 x 4 comes from 6 x 6 pixels by Y = A^T [(G g G^T) * (B^T d B)] A (Lavin, Gray: Fast Algorithms for
// Convolutional Neural Networks, CVPR 2016, Eq. (9)): 36 products for each pair of channels instead of 144. G g G^T is done
// in Python, once. Here tiles are transformed TILES at a time, multiplied by the weights for each of the 36 places, and
// transformed back, with a sum and an activation on the way out. What a tile gives doesn't depend on the others.
// Channels on both sides are a multiple of LANES.

#include "vectors.h"

#include <algorithm>

namespace {

constexpr int TILES = 24;  // at most, of a block: its two scratch areas stay in the second-level cache
constexpr int ROWS = 12;   // tiles whose products are in registers at once
constexpr int PLACES = 36;

struct Shape : Sizes {
    int images;

    int across() const { return (width + 3) / 4; }
    int of_an_image() const { return (height + 3) / 4 * across(); }
    long tiles() const { return static_cast<long>(images) * of_an_image(); }
    size_t pixels() const { return static_cast<size_t>(height) * width; }
};

// B^T d.
inline __attribute__((always_inline)) void before(const Lanes *d, Lanes *t) {
    const Lanes a = d[4] - 4.f * d[2], b = d[3] - 4.f * d[1];
    const Lanes c = d[4] - d[2], e = 2.f * (d[3] - d[1]);
    t[0] = 4.f * d[0] - 5.f * d[2] + d[4];
    t[1] = a + b;
    t[2] = a - b;
    t[3] = c + e;
    t[4] = c - e;
    t[5] = 4.f * d[1] - 5.f * d[3] + d[5];
}

// A^T m.
inline __attribute__((always_inline)) void after(const Lanes *m, Lanes *t) {
    const Lanes sum = m[1] + m[2], difference = m[1] - m[2], p = m[3] + m[4], q = m[3] - m[4];
    t[0] = m[0] + sum + p;
    t[1] = difference + 2.f * q;
    t[2] = sum + 4.f * p;
    t[3] = difference + 8.f * q + m[5];
}

// B^T d B of the tile at (row, column) of an image `x`, to places that lie `plane` apart.
void transform(const Shape &shape, const float *x, int row, int column, float *to, size_t plane) {
    const int top = 4 * row - 1, left = 4 * column - 1;
    for (int channel = 0; channel < shape.channels; channel += LANES) {
        Lanes columns[6][6], line[6], found[6];
        for (int j = 0; j < 6; ++j) {
            for (int i = 0; i < 6; ++i) {
                const int y = top + i, z = left + j;
                const bool inside = y >= 0 && y < shape.height && z >= 0 && z < shape.width;
                const size_t pixel = static_cast<size_t>(y) * shape.width + z;
                line[i] = inside ? load(x + pixel * shape.channels + channel) : Lanes{};
            }
            before(line, found);
            for (int i = 0; i < 6; ++i) columns[i][j] = found[i];
        }
        for (int i = 0; i < 6; ++i) {
            before(columns[i], found);
            for (int j = 0; j < 6; ++j) store(to + (6 * i + j) * plane + channel, found[j]);
        }
    }
}

// A^T m A to the tile at (row, column) of an image that begins at pixel `image`, and what is done there.
void transform_back(const Shape &shape, const Finish &finish, const float *m, size_t plane, size_t image, int row, int column,
                    float *out) {
    for (int filter = 0; filter < shape.filters; filter += LANES) {
        Lanes columns[4][6], line[6], found[4];
        for (int j = 0; j < 6; ++j) {
            for (int i = 0; i < 6; ++i) line[i] = load(m + (6 * i + j) * plane + filter);
            after(line, found);
            for (int i = 0; i < 4; ++i) columns[i][j] = found[i];
        }
        for (int i = 0; i < 4 && 4 * row + i < shape.height; ++i) {
            after(columns[i], found);
            for (int j = 0; j < 4 && 4 * column + j < shape.width; ++j) {
                const size_t pixel = image + static_cast<size_t>(4 * row + i) * shape.width + 4 * column + j;
                put<LANES>(finish, found[j], pixel * shape.filters, filter, out);
            }
        }
    }
}

// HEIGHT rows of v (tiles, channels) times LANES * WIDTH columns of u (channels, filters). A function of its own, so that it has all
// registers to itself.
template <int HEIGHT, int WIDTH>
__attribute__((noinline)) void multiply(const float *v, const float *u, float *m, int channels, int filters) {
    Lanes sums[HEIGHT][WIDTH] = {}, weights[WIDTH];
    Rows<HEIGHT> rows(v, channels);
    for (const float *const end = u + static_cast<size_t>(channels) * filters; u < end; u += filters, rows.next()) {
        for (int j = 0; j < WIDTH; ++j) weights[j] = load(u + j * LANES);
        for (int i = 0; i < HEIGHT; ++i)
            for (int j = 0; j < WIDTH; ++j) sums[i][j] += rows[i] * weights[j];
    }
#pragma GCC unroll 16  // else the sums go through memory
    for (int i = 0; i < HEIGHT; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < WIDTH; ++j) store(m + static_cast<size_t>(i) * filters + j * LANES, sums[i][j]);
}

// The same for all rows, in as few pieces as registers allow.
template <int HEIGHT, int WIDTH>
void multiply_rows(const float *v, const float *u, float *m, int rows, int channels, int filters) {
    int row = 0;
    const auto piece = [&](auto call, int height) {
        for (; row + height <= rows; row += height)
            call(v + static_cast<size_t>(row) * channels, u, m + static_cast<size_t>(row) * filters, channels, filters);
    };
    piece(multiply<HEIGHT, WIDTH>, HEIGHT);
    piece(multiply<4, WIDTH>, 4);
    piece(multiply<1, WIDTH>, 1);
}

void multiply_all(const float *v, const float *u, float *m, int rows, int channels, int filters) {
    int filter = 0;
    if (rows < 4)  // too few sums at once for the processor's pipelines, unless they lie side by side
        for (; filter + 4 * LANES <= filters; filter += 4 * LANES)
            multiply_rows<4, 4>(v, u + filter, m + filter, rows, channels, filters);
    for (; filter + 2 * LANES <= filters; filter += 2 * LANES)
        multiply_rows<LANES == 16 ? ROWS : ROWS / 2, 2>(v, u + filter, m + filter, rows, channels, filters);
    for (; filter < filters; filter += LANES)
        multiply_rows<ROWS, 1>(v, u + filter, m + filter, rows, channels, filters);
}

void block(const Shape &shape, const Finish &finish, const float *x, const float *u, float *y, long first, int tiles) {
    const size_t plane = static_cast<size_t>(tiles) * shape.channels, back = static_cast<size_t>(tiles) * shape.filters;
    float *const v = scratch(PLACES * (plane + back)), *const m = v + PLACES * plane;
    const auto each = [&](auto call) {
        for (int i = 0; i < tiles; ++i) {
            const long image = (first + i) / shape.of_an_image();
            const int inside = static_cast<int>((first + i) % shape.of_an_image());
            call(i, image * shape.pixels(), inside / shape.across(), inside % shape.across());
        }
    };
    each([&](int i, size_t image, int row, int column) {
        transform(shape, x + image * shape.channels, row, column, v + static_cast<size_t>(i) * shape.channels, plane);
    });
    for (int place = 0; place < PLACES; ++place)
        multiply_all(v + place * plane, u + static_cast<size_t>(place) * shape.channels * shape.filters, m + place * back,
                     tiles, shape.channels, shape.filters);
    each([&](int i, size_t image, int row, int column) {
        transform_back(shape, finish, m + static_cast<size_t>(i) * shape.filters, back, image, row, column, y);
    });
}

}  // namespace

// weights (36, channels, filters). Channels and filters: multiples of LANES.
void winograd(const Sizes &sizes, const Finish &finish, const float *x, const float *weights, float *y, int images, int threads) {
    const Shape shape{sizes, images};
    const long tiles = shape.tiles();
    const int size = tiles > 2L * TILES * threads ? TILES : ROWS;  // few tiles: an even share for each thread
    const long blocks = (tiles + size - 1) / size;
    shared_out(blocks, threads, [&](long i) {
        block(shape, finish, x, weights, y, i * size, static_cast<int>(std::min<long>(size, tiles - i * size)));
    });
}
