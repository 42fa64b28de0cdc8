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

// A tile of the batch: which, and where its image begins, in pixels.
struct Tile {
    int row, column;
    size_t image;

    Tile(const Shape &shape, long number) {
        const int inside = static_cast<int>(number % shape.of_an_image());
        row = inside / shape.across(), column = inside % shape.across();
        image = number / shape.of_an_image() * shape.pixels();
    }
    void next(const Shape &shape) {
        if (++column < shape.across()) return;
        column = 0;
        if (4 * ++row < shape.height) return;
        row = 0;
        image += shape.pixels();
    }
};

// Six addresses a fixed distance apart, which the processor adds up on the way. Left to itself the compiler does so beforehand, for
// all of a tile at once, and keeps them in memory.
struct Six {
    size_t one, three, five;  // bytes

    explicit Six(size_t floats) : one(floats * sizeof(float)), three(3 * one), five(5 * one) {
        asm("" : "+r"(one), "+r"(three), "+r"(five));
    }
    inline INLINED const float *of(const float *first, int i) const {
        const size_t bytes = i == 5 ? five : i == 3 ? three : i * one;
        return reinterpret_cast<const float *>(reinterpret_cast<const char *>(first) + bytes);
    }
    inline INLINED float *of(float *first, int i) const {
        return const_cast<float *>(of(static_cast<const float *>(first), i));
    }
};

template <typename T>
inline INLINED void advance(T *&pointer, size_t floats) {
    pointer += floats;
    asm("" : "+r"(pointer));
}

// As `load`, but once: reading takes longer than computing, and the compiler would read again what is needed again.
inline INLINED Lanes read(const float *from) {
    Lanes x = load(from);
#if LANES == 16
    asm("" : "+v"(x));
#else
    asm("" : "+x"(x));
#endif
    return x;
}

struct Pair {
    Lanes first, second;
};

// B^T d, by the rows of B^T that have much in common: 0 (or 5, of d from 1 on), 1 and 2, 3 and 4.
inline INLINED Lanes outer(Lanes d0, Lanes d2, Lanes d4) { return 4.f * d0 + (d4 - 5.f * d2); }
inline INLINED Pair inner(Lanes d1, Lanes d2, Lanes d3, Lanes d4) {
    const Lanes a = d4 - 4.f * d2, b = d3 - 4.f * d1;
    return {a + b, a - b};
}
inline INLINED Pair middle(Lanes d1, Lanes d2, Lanes d3, Lanes d4) {
    const Lanes a = d4 - d2, b = d3 - d1;
    return {a + 2.f * b, a - 2.f * b};
}

// A^T m, by its rows 0 and 2, 1 and 3.
inline INLINED Pair even(Lanes m0, Lanes m1, Lanes m2, Lanes m3, Lanes m4) {
    const Lanes a = m1 + m2, b = m3 + m4;
    return {m0 + a + b, a + 4.f * b};
}
inline INLINED Pair odd(Lanes m1, Lanes m2, Lanes m3, Lanes m4, Lanes m5) {
    const Lanes a = m1 - m2, b = m3 - m4;
    return {a + 2.f * b, a + 8.f * b + m5};
}

// A row of B^T d times B, to six places.
inline INLINED void times_b(const Lanes (&d)[6], float *to, const Six &planes) {
    const Pair in = inner(d[1], d[2], d[3], d[4]), mid = middle(d[1], d[2], d[3], d[4]);
    store(planes.of(to, 0), outer(d[0], d[2], d[4]));
    store(planes.of(to, 1), in.first);
    store(planes.of(to, 2), in.second);
    store(planes.of(to, 3), mid.first);
    store(planes.of(to, 4), mid.second);
    store(planes.of(to, 5), outer(d[1], d[3], d[5]));
}

alignas(64) const float ZEROS[LANES] = {};

// B^T d B of 6 x 6 vectors, to 36 places; two rows of B^T d at a time, which fit the registers. within: a bit for each of the 36,
// row by row, whether it is inside the image, else it is zero; WHOLE: all are.
template <bool WHOLE>
inline INLINED void transform(const float *first, const Six &down, size_t right, uint64_t within, float *to,
                                                     const Six &planes) {
    Lanes one[6], two[6];
    const auto columns = [&](auto call) INLINED {
        const float *top = first;
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) {
            call(j, [&](int i) INLINED {
                const float *const at = down.of(top, i);
                return read(WHOLE || within >> (6 * i + j) & 1 ? at : ZEROS);
            });
            advance(top, right);
        }
    };
    const auto done = [&](const Lanes(&row)[6]) INLINED {
        times_b(row, to, planes);
        to = planes.of(planes.of(to, 5), 1);
        advance(to, 0);
    };
    const auto pairs = [&](auto rows) INLINED {
        columns([&](int j, auto d) INLINED {
            const Pair found = rows(d(1), d(2), d(3), d(4));
            one[j] = found.first, two[j] = found.second;
        });
        done(one);
        done(two);
    };
    columns([&](int j, auto d) INLINED { one[j] = outer(d(0), d(2), d(4)); });
    done(one);
    pairs([](Lanes d1, Lanes d2, Lanes d3, Lanes d4) INLINED { return inner(d1, d2, d3, d4); });
    pairs([](Lanes d1, Lanes d2, Lanes d3, Lanes d4) INLINED { return middle(d1, d2, d3, d4); });
    columns([&](int j, auto d) INLINED { one[j] = outer(d(1), d(3), d(5)); });
    done(one);
}

// B^T d B of a tile of the images `x`, to places that lie `plane` apart.
void transform_tile(const Shape &shape, const Tile &tile, const float *x, float *to, size_t plane) {
    const int top = 4 * tile.row - 1, left = 4 * tile.column - 1;
    const ptrdiff_t right = shape.channels, line = right * shape.width;
    const float *const first = x + static_cast<ptrdiff_t>(tile.image) * right + top * line + left * right;
    const Six down(line), planes(plane);
    if (top >= 0 && left >= 0 && top + 6 <= shape.height && left + 6 <= shape.width) {
        for (int channel = 0; channel < shape.channels; channel += LANES)
            transform<true>(first + channel, down, right, 0, to + channel, planes);
        return;
    }
    uint64_t within = 0;
    for (int i = std::max(0, -top); i < std::min(6, shape.height - top); ++i)
        for (int j = std::max(0, -left); j < std::min(6, shape.width - left); ++j) within |= uint64_t{1} << (6 * i + j);
    for (int channel = 0; channel < shape.channels; channel += LANES)
        transform<false>(first + channel, down, right, within, to + channel, planes);
}

// A^T m A to a tile, m's places being `plane` apart, and what is done there.
void transform_back(const Shape &shape, const Tile &tile, const Finish &finish, const float *m, size_t plane, float *out) {
    const int height = std::min(4, shape.height - 4 * tile.row), width = std::min(4, shape.width - 4 * tile.column);
    const size_t apart = shape.filters, line = apart * shape.width;
    const size_t pixel = tile.image * apart + 4 * (tile.row * line + tile.column * apart);
    const Six down(6 * plane);
    for (int filter = 0; filter < shape.filters; filter += LANES) {
        Lanes one[6], two[6];
        const auto pairs = [&](auto rows) INLINED {
            const float *top = m + filter;
#pragma GCC unroll 6
            for (int j = 0; j < 6; ++j) {
                const Pair found = rows([&](int i) INLINED { return read(down.of(top, i)); });
                one[j] = found.first, two[j] = found.second;
                advance(top, plane);
            }
        };
        const auto done = [&](int i, const Lanes(&row)[6]) INLINED {
            if (i >= height) return;
            const Pair evens = even(row[0], row[1], row[2], row[3], row[4]), odds = odd(row[1], row[2], row[3], row[4], row[5]);
            Lanes found[4] = {evens.first, odds.first, evens.second, odds.second};
            if (width == 4) return put<LANES>(finish, found, pixel + i * line, apart, filter, out);
            for (int j = 0; j < width; ++j) {
                Lanes single[1] = {found[j]};
                put<LANES>(finish, single, pixel + i * line + j * apart, apart, filter, out);
            }
        };
        pairs([](auto m) INLINED { return even(m(0), m(1), m(2), m(3), m(4)); });
        done(0, one);
        done(2, two);
        pairs([](auto m) INLINED { return odd(m(1), m(2), m(3), m(4), m(5)); });
        done(1, one);
        done(3, two);
    }
}

// HEIGHT rows of v (tiles, channels) times PANELS panels of u, (channels, WIDTH vectors) each. A function of its own, so that it has
// all registers to itself.
template <int HEIGHT, int WIDTH, int PANELS = 1>
__attribute__((noinline)) void multiply(const float *v, const float *u, float *m, int channels, int filters) {
    constexpr int VECTORS = WIDTH * PANELS;
    const size_t panel = static_cast<size_t>(channels) * WIDTH * LANES;
    Lanes sums[HEIGHT][VECTORS] = {}, weights[VECTORS];
    Rows<HEIGHT> rows(v, channels);
    for (const float *const end = u + panel; u < end; u += WIDTH * LANES, rows.next()) {
        for (int j = 0; j < VECTORS; ++j) weights[j] = load(u + j / WIDTH * panel + j % WIDTH * LANES);
        for (int i = 0; i < HEIGHT; ++i)
            for (int j = 0; j < VECTORS; ++j) sums[i][j] += rows[i] * weights[j];
    }
#pragma GCC unroll 16  // else the sums go through memory
    for (int i = 0; i < HEIGHT; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j) store(m + static_cast<size_t>(i) * filters + j * LANES, sums[i][j]);
}

// All rows of v times all panels of u, in as few pieces as registers allow.
template <int HEIGHT, int WIDTH>
void multiply_all(const float *v, const float *u, float *m, int rows, int channels, int filters) {
    int row = 0, filter = 0;
    const auto piece = [&](auto call, int height) {
        for (; row + height <= rows; row += height)
            call(v + static_cast<size_t>(row) * channels, u + static_cast<size_t>(filter) * channels,
                 m + static_cast<size_t>(row) * filters + filter, channels, filters);
    };
    const auto panels = [&](int count, auto pieces) {
        for (const int width = count * WIDTH * LANES; filter + width <= filters; filter += width, row = 0) pieces();
    };
    if (rows < 4)  // too few sums at once for the processor's pipelines, unless they lie side by side
        panels(2, [&] { piece(multiply<1, WIDTH, 2>, 1); });
    panels(1, [&] {
        piece(multiply<HEIGHT, WIDTH>, HEIGHT);
        piece(multiply<4, WIDTH>, 4);
        piece(multiply<1, WIDTH>, 1);
    });
}

void block(const Shape &shape, const Finish &finish, const float *x, const float *u, float *y, long first, int tiles) {
    // A line more than they need: places that are whole pages apart would share the same few lines of the cache.
    const size_t plane = static_cast<size_t>(tiles) * shape.channels + LANES, back = static_cast<size_t>(tiles) * shape.filters + LANES;
    float *const v = scratch(PLACES * (plane + back)), *const m = v + PLACES * plane;
    const auto each = [&](auto call) {
        Tile tile(shape, first);
        for (int i = 0; i < tiles; ++i, tile.next(shape)) call(i, tile);
    };
    each([&](size_t i, const Tile &tile) { transform_tile(shape, tile, x, v + i * shape.channels, plane); });
    const auto multiplied = shape.filters % (2 * LANES) ? multiply_all<ROWS, 1> : multiply_all<LANES == 16 ? ROWS : ROWS / 2, 2>;
    for (int place = 0; place < PLACES; ++place)
        multiplied(v + place * plane, u + static_cast<size_t>(place) * shape.channels * shape.filters, m + place * back, tiles,
                   shape.channels, shape.filters);
    each([&](size_t i, const Tile &tile) { transform_back(shape, tile, finish, m + i * shape.filters, back, y); });
}

}  // namespace

// weights (36, panels, channels, filters of a panel), which are two vectors where the filters fill such panels, else one. Channels
// and filters: multiples of LANES.
void winograd(const Sizes &sizes, const Finish &finish, const float *x, const float *weights, float *y, int images, int threads) {
    const Shape shape{sizes, images};
    const long tiles = shape.tiles();
    // Few tiles: an even share for each thread.
    const int size = threads == 1 || tiles > 2L * TILES * threads ? TILES : ROWS;
    const long blocks = (tiles + size - 1) / size;
    shared_out(blocks, threads, [&](long i) {
        block(shape, finish, x, weights, y, i * size, static_cast<int>(std::min<long>(size, tiles - i * size)));
    });
}
