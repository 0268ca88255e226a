// A blocked matrix product whose right operand is packed piece by piece and whose result is handed out in blocks.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "tiles.hpp"

namespace hmoe {

// In tiles: 256 columns are packed 1024 deep at a time, half a megabyte, and multiplied 256 deep at a time, so that what a
// block of rows needs stays in the nearest cache. 128 columns, 512 or 768 deep were slower by some per cent.
constexpr int64_t COLUMNS = 256, DEEP = 8, PACKED = 32;

// Memory that is kept and only grows: fresh pages cost as much as the arithmetic on them.
class Arena {
 public:
  char* room(size_t bytes) {
    if (bytes > size_) {
      if (data_) munmap(data_, size_);
      size_ = (bytes + (bytes >> 3) + (2 << 20)) & ~(size_t)((2 << 20) - 1);
      void* mapped = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (mapped == MAP_FAILED) {
        data_ = nullptr, size_ = 0;
        throw std::bad_alloc();
      }
      madvise(mapped, size_, MADV_HUGEPAGE);
      data_ = static_cast<char*>(mapped);
    }
    return data_;
  }
  ~Arena() {
    if (data_) munmap(data_, size_);
  }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

// What one thread needs: two operands of its task, a packed piece, the result before it is handed out.
struct Scratch {
  bf16 *left, *right, *packed;
  float* c;
  Scratch(Arena& arena, int64_t left_elements, int64_t right_elements, int64_t rows) {
    left = reinterpret_cast<bf16*>(arena.room(2 * (left_elements + right_elements + COLUMNS * PACKED * DEPTH) + 4 * rows * COLUMNS));
    right = left + left_elements;
    packed = right + right_elements;
    c = reinterpret_cast<float*>(packed + COLUMNS * PACKED * DEPTH);
  }
};

// a: strips of 16 rows, `depth` tiles each; rows and columns are multiples of 32.
// pack(packed, k, tiles, n, columns): B tiles of `columns` columns from n and `tiles` deep from tile k, strip by strip.
// finish(m, n, c): the finished 32 x 32 block at row m, column n.
template <class Pack, class Finish>
void gemm(const bf16* a, int64_t rows, int64_t depth, int64_t columns, const Scratch& s, Pack pack, Finish finish) {
  for (int64_t n0 = 0; n0 < columns; n0 += COLUMNS) {
    const int64_t width = std::min(COLUMNS, columns - n0);
    for (int64_t p0 = 0; p0 < depth; p0 += PACKED) {
      const int64_t packed = std::min(PACKED, depth - p0);
      const bool last = p0 + packed == depth;
      pack(s.packed, p0, packed, n0, width);
      for (int64_t m = 0; m < rows; m += BLOCK) {
        float* c = s.c + (depth <= PACKED ? 0 : m * COLUMNS);
        for (int64_t k = 0; k < packed; k += DEEP)
          for (int64_t n = 0; n < width; n += BLOCK)
            multiply(a + (m / SIDE) * depth * TILE + (p0 + k) * TILE, depth * TILE, s.packed + (n / SIDE) * packed * TILE + k * TILE,
                     packed * TILE, std::min(DEEP, packed - k), c + n * BLOCK, p0 + k > 0);
        if (last)
          for (int64_t n = 0; n < width; n += BLOCK) finish(m, n0 + n, c + n * BLOCK);
      }
    }
  }
}

// pack for gemm: columns are rows of w (depth contiguous); w has `units` rows of `dim`.
inline void pack_transposed(const bf16* w, int64_t units, int64_t dim, int64_t unit, int64_t k, int64_t deep, bf16* strip) {
  for (int64_t i = 0; i < deep; i++)
    pack_columns(w + unit * dim + (k + i) * DEPTH, dim, units - unit, dim - (k + i) * DEPTH, strip + i * TILE);
}

// pack for gemm: depth runs over rows; row(i) is a pointer to `dim` columns, or null for a row of zeros.
template <class Row>
void pack_rows(Row row, int64_t dim, int64_t k, int64_t deep, int64_t n, int64_t columns, bf16* packed) {
  if (dim < n + columns) memset(packed, 0, 2 * columns * deep * DEPTH);  // strips beyond the last column
  for (int64_t pair = 0; pair < deep * SIDE; pair++) {
    const int64_t i = k * DEPTH + 2 * pair;
    const bf16 *even = row(i), *odd = row(i + 1);
    pack_pair(even ? even + n : nullptr, odd ? odd + n : nullptr, std::min(columns, dim - n), deep * TILE,
              packed + (pair / SIDE) * TILE + (pair % SIDE) * 2 * SIDE);
  }
}

}  // namespace hmoe
