// bfloat16 tiles of 1 KB and the 32 x 32 product of them: AMX where the compiler targets it, AVX-512 BF16 otherwise.
//
// An A tile is 16 rows x 32 deep, row-major. A B tile is 32 deep x 16 columns with pairs along the depth interleaved,
// [16 pairs][16 columns][2], which is what both instruction sets multiply.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace hmoe {

using bf16 = uint16_t;
constexpr int SIDE = 16, DEPTH = 32, TILE = SIDE * DEPTH, BLOCK = 32;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline __mmask16 first(int64_t n) { return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1); }
inline __mmask32 first32(int64_t n) { return n >= 32 ? 0xffffffff : n <= 0 ? 0 : (1u << n) - 1; }
inline __m512 widen(__m256i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16)); }
inline __m256i narrow(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
inline __m512 load(const bf16* p, __mmask16 m) { return widen(_mm256_maskz_loadu_epi16(m, p)); }
inline void store(bf16* p, __mmask16 m, __m512 v) { _mm256_mask_storeu_epi16(p, m, narrow(v)); }
inline __m512i interleave(__m256i even, __m256i odd) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
}

// 1 / (1 + exp(-x)) to 1e-4 relative, a twentieth of bfloat16's rounding; NaN for NaN and infinities.
inline __m512 sigmoid(__m512 x) {
  const __m512 z = _mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)), n = _mm512_roundscale_ps(z, 8), f = _mm512_sub_ps(z, n);
  __m512 p = _mm512_set1_ps(1.33335581e-3f);  // 2^f on [-1/2, 1/2]: Taylor, error 2e-6
  for (float c : {9.61812911e-3f, 5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.0f}) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
  return _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1.0f), _mm512_scalef_ps(p, n)));
}

// dst[j][i] = src[i][j] for 16 x 16 dwords; rows of src lie `stride` bytes apart, dst is 1 KB.
inline void transpose(const void* src, int64_t stride, void* dst) {
  const char* s = static_cast<const char*>(src);
  for (int c = 0; c < 4; c++) {  // 128-bit column: inserts from memory spare the one shuffle port
    __m512i v[4];
    for (int i = 0; i < 4; i++) {
      const char* p = s + i * stride + 16 * c;
      __m512i t = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)p));
      t = _mm512_inserti32x4(t, _mm_loadu_si128((const __m128i*)(p + 4 * stride)), 1);
      t = _mm512_inserti32x4(t, _mm_loadu_si128((const __m128i*)(p + 8 * stride)), 2);
      v[i] = _mm512_inserti32x4(t, _mm_loadu_si128((const __m128i*)(p + 12 * stride)), 3);
    }
    const __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i d = _mm512_unpacklo_epi32(v[2], v[3]), e = _mm512_unpackhi_epi32(v[2], v[3]);
    __m512i* out = static_cast<__m512i*>(dst) + 4 * c;
    _mm512_store_si512(out + 0, _mm512_unpacklo_epi64(a, d));
    _mm512_store_si512(out + 1, _mm512_unpackhi_epi64(a, d));
    _mm512_store_si512(out + 2, _mm512_unpacklo_epi64(b, e));
    _mm512_store_si512(out + 3, _mm512_unpackhi_epi64(b, e));
  }
}

// A tiles of one matrix row: tile k of the row's strip starts at dst + k * TILE.
inline void pack_row(const bf16* row, int64_t columns, bf16* dst) {
  for (int64_t k = 0; k < columns; k += DEPTH, dst += TILE) {
    _mm512_store_si512(dst, _mm512_maskz_loadu_epi16(first32(columns - k), row + k));
  }
}

// A B tile from 16 matrix rows that are its columns (depth contiguous in memory).
inline void pack_columns(const bf16* src, int64_t stride, int64_t columns, int64_t depth, bf16* dst) {
  if (columns >= SIDE && depth >= DEPTH) return transpose(src, 2 * stride, dst);
  alignas(64) bf16 whole[TILE] = {};
  for (int64_t i = 0; i < columns && i < SIDE; i++) pack_row(src + i * stride, depth < DEPTH ? depth : DEPTH, whole + i * DEPTH);
  transpose(whole, 2 * DEPTH, dst);
}

// One row pair of the B tiles of consecutive 16-column strips, `strip` elements apart.
inline void pack_pair(const bf16* even, const bf16* odd, int64_t columns, int64_t strip, bf16* dst) {
  for (int64_t n = 0; n < columns; n += SIDE, dst += strip) {
    const __mmask16 m = first(columns - n);
    const __m256i e = even ? _mm256_maskz_loadu_epi16(m, even + n) : _mm256_setzero_si256();
    const __m256i o = odd ? _mm256_maskz_loadu_epi16(m, odd + n) : _mm256_setzero_si256();
    _mm512_store_si512(dst, interleave(e, o));
  }
}

#ifdef __AMX_BF16__
struct Tiles {  // configures this thread's tile registers, and gives them back: kept ones make thread switches slower
  Tiles() {
    alignas(64) uint8_t config[64] = {1};
    for (int i = 0; i < 8; i++) config[16 + 2 * i] = 64, config[48 + i] = 16;
    asm volatile("ldtilecfg %0" ::"m"(config));  // the intrinsic of GCC 12 lets the stores above be dropped
  }
  ~Tiles() { _tile_release(); }
};

// c (32 x 32, row-major) = or += two strips of A x two strips of B, `depth` tiles each.
inline void multiply(const bf16* a, int64_t a_strip, const bf16* b, int64_t b_strip, int64_t depth, float* c, bool add) {
  asm volatile("" ::: "memory");  // GCC's tile loads and stores do not say that they touch memory
  if (add) {
    _tile_loadd(0, c, 128);
    _tile_loadd(1, c + 16, 128);
    _tile_loadd(2, c + 512, 128);
    _tile_loadd(3, c + 528, 128);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; k++) {
    _tile_loadd(4, a + k * TILE, 64);
    _tile_loadd(6, b + k * TILE, 64);
    _tile_loadd(5, a + a_strip + k * TILE, 64);
    _tile_loadd(7, b + b_strip + k * TILE, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, 128);
  _tile_stored(1, c + 16, 128);
  _tile_stored(2, c + 512, 128);
  _tile_stored(3, c + 528, 128);
  asm volatile("" ::: "memory");
}
#else
struct Tiles {
  Tiles() {}
};

inline void multiply(const bf16* a, int64_t a_strip, const bf16* b, int64_t b_strip, int64_t depth, float* c, bool add) {
  for (int rows = 0; rows < BLOCK; rows += 8, c += 8 * BLOCK) {
    const bf16* strip = a + (rows / SIDE) * a_strip + (rows % SIDE) * DEPTH;
    __m512 left[8], right[8];
    for (int i = 0; i < 8; i++) {
      left[i] = add ? _mm512_load_ps(c + i * BLOCK) : _mm512_setzero_ps();
      right[i] = add ? _mm512_load_ps(c + i * BLOCK + 16) : _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < depth; k++)
      for (int pair = 0; pair < SIDE; pair++) {
        const __m512bh b0 = (__m512bh)_mm512_load_si512(b + k * TILE + pair * 32);
        const __m512bh b1 = (__m512bh)_mm512_load_si512(b + b_strip + k * TILE + pair * 32);
        for (int i = 0; i < 8; i++) {
          int32_t two;
          memcpy(&two, strip + k * TILE + i * DEPTH + 2 * pair, 4);
          const __m512bh x = (__m512bh)_mm512_set1_epi32(two);
          left[i] = _mm512_dpbf16_ps(left[i], x, b0);
          right[i] = _mm512_dpbf16_ps(right[i], x, b1);
        }
      }
    for (int i = 0; i < 8; i++) _mm512_store_ps(c + i * BLOCK, left[i]), _mm512_store_ps(c + i * BLOCK + 16, right[i]);
  }
}
#endif

}  // namespace hmoe
