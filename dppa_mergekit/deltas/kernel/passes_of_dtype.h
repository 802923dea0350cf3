/* The passes over tensors of one dtype. passes.c includes this file once for each dtype, with:

   DTYPE           the C type of a value: float32, bfloat16 or float16;
   OF_DTYPE(name)  a function's name for this dtype: sum_tails becomes sum_tails_float16.

Pointers are to the first value of a chunk. Only where a function has a `start`, the base and the
fine-tuned values are those of the whole tensor, in which the chunk begins at `start`.
*/

#define WIDEN OF_DTYPE(widen)
#define NARROW OF_DTYPE(narrow)

/* Compute the delta of a block, with zeros beyond the end of the chunk. */
static inline void OF_DTYPE(subtract)(const DTYPE *fine_tuned, const DTYPE *base, int size,
                                      float *delta) {
    if (size == BLOCK) {
        for (int i = 0; i < BLOCK; i++)
            delta[i] = WIDEN(fine_tuned[i]) - WIDEN(base[i]);
        return;
    }
    memset(delta, 0, BLOCK * sizeof *delta);
    for (int i = 0; i < size; i++)
        delta[i] = WIDEN(fine_tuned[i]) - WIDEN(base[i]);
}

/* Sum the magnitudes, count those that are not zero, and gather those above a floor, in order.
   Return the number of magnitudes above the floor. */
FOR_THIS_PROCESSOR
int64_t OF_DTYPE(sum_magnitudes)(const DTYPE *fine_tuned, const DTYPE *base, int64_t length,
                                 float floor, float *above, double *sum, int64_t *nonzero) {
    double lanes[LANES] = {0};
    int64_t found = 0, moved = 0;
    for (int64_t start = 0; start < length; start += BLOCK) {
        int size = length - start < BLOCK ? (int)(length - start) : BLOCK;
        int here = 0, chosen = 0;
        float magnitude[BLOCK];
        int32_t inside[BLOCK];
        OF_DTYPE(subtract)(fine_tuned + start, base + start, size, magnitude);
        for (int i = 0; i < BLOCK; i++)
            magnitude[i] = __builtin_fabsf(magnitude[i]);
        for (int i = 0; i < BLOCK; i += LANES)
            for (int lane = 0; lane < LANES; lane++)
                lanes[lane] += magnitude[i + lane];
        for (int i = 0; i < BLOCK; i++)
            here += magnitude[i] != 0.0f;
        moved += here;
        for (int i = 0; i < BLOCK; i++)
            chosen += magnitude[i] > floor;
        if (!chosen)
            continue;
        for (int i = 0; i < BLOCK; i++)
            inside[i] = magnitude[i] > floor;
        if (MANY(chosen))
            for (int i = 0; i < size; i++) {
                above[found] = magnitude[i];
                found += inside[i];
            }
        else
            for (uint64_t bits = bits_of(inside); bits; bits &= bits - 1)
                above[found++] = magnitude[__builtin_ctzll(bits)];
    }
    *sum = 0;
    for (int lane = 0; lane < LANES; lane++)
        *sum += lanes[lane];
    *nonzero = moved;
    return found;
}

/* Sum and count the magnitudes above each bound. */
FOR_THIS_PROCESSOR
void OF_DTYPE(sum_tails)(const DTYPE *fine_tuned, const DTYPE *base, int64_t length,
                         int64_t bounds, const float *bound, double *sum, int64_t *count) {
    for (int64_t n = 0; n < bounds; n++)
        sum[n] = count[n] = 0;
    for (int64_t start = 0; start < length; start += BLOCK) {
        int size = length - start < BLOCK ? (int)(length - start) : BLOCK;
        float magnitude[BLOCK];
        OF_DTYPE(subtract)(fine_tuned + start, base + start, size, magnitude);
        for (int i = 0; i < BLOCK; i++)
            magnitude[i] = __builtin_fabsf(magnitude[i]);
        for (int64_t n = 0; n < bounds; n++) {
            float above = bound[n];
            double lanes[LANES];
            int here = 0;
            for (int i = 0; i < BLOCK; i++)
                here += magnitude[i] > above;
            if (!here)
                continue;
            for (int lane = 0; lane < LANES; lane++)
                lanes[lane] = magnitude[lane] > above ? magnitude[lane] : 0.0f;
            for (int i = LANES; i < BLOCK; i += LANES)
                for (int lane = 0; lane < LANES; lane++)
                    lanes[lane] += magnitude[i + lane] > above ? magnitude[i + lane] : 0.0f;
            for (int lane = 1; lane < LANES; lane++)
                lanes[0] += lanes[lane];
            sum[n] += lanes[0];
            count[n] += here;
        }
    }
}

/* Count the keys above each interval, and gather the indices and keys of the elements within any
   interval. Return the number of these elements. Values beyond the chunk have the key 0, which no
   interval contains. */
FOR_THIS_PROCESSOR
int64_t OF_DTYPE(find_keys)(const DTYPE *fine_tuned, const DTYPE *base, int64_t length,
                            int64_t intervals, const int32_t *low, const int32_t *high,
                            int64_t *above, int32_t *index, int32_t *keys) {
    int64_t found = 0;
    for (int64_t n = 0; n < intervals; n++)
        above[n] = 0;
    for (int64_t start = 0; start < length; start += BLOCK) {
        int size = length - start < BLOCK ? (int)(length - start) : BLOCK;
        float delta[BLOCK];
        int32_t key[BLOCK], inside[BLOCK];
        int chosen = 0;
        OF_DTYPE(subtract)(fine_tuned + start, base + start, size, delta);
        for (int i = 0; i < BLOCK; i++)
            key[i] = key_of(delta[i]);
        for (int64_t n = 0; n < intervals; n++) {
            int32_t from = low[n], to = high[n], larger = 0;
            if (n == 0)
                for (int i = 0; i < BLOCK; i++)
                    inside[i] = (key[i] >= from) & (key[i] <= to);
            else
                for (int i = 0; i < BLOCK; i++)
                    inside[i] |= (key[i] >= from) & (key[i] <= to);
            for (int i = 0; i < BLOCK; i++)
                larger += key[i] > to;
            above[n] += larger;
        }
        for (int i = 0; i < BLOCK; i++)
            chosen += inside[i];
        if (MANY(chosen))
            for (int i = 0; i < size; i++) {
                index[found] = (int32_t)(start + i);
                keys[found] = key[i];
                found += inside[i];
            }
        else if (chosen)
            for (uint64_t bits = bits_of(inside); bits; bits &= bits - 1) {
                int here = __builtin_ctzll(bits);
                index[found] = (int32_t)(start + here);
                keys[found++] = key[here];
            }
    }
    return found;
}

/* Compute weight * (factor * (delta / divisor)) of a block, with the factor of the first cut that
   keeps the element, and 0 where no cut does. The base is widened already; `first` is the index of
   the block's first element. The hashes are computed when a model needs them, and serve all
   models. */
INLINE void OF_DTYPE(weight_delta)(const DTYPE *fine_tuned, const float *base, int size,
                                   const struct amplified_delta *model, uint32_t first,
                                   uint32_t *hash, int *hashed, float *delta) {
    float scale[BLOCK], weight = model->weight;
    int32_t key[BLOCK];
    if (size == BLOCK)
        for (int i = 0; i < BLOCK; i++)
            delta[i] = WIDEN(fine_tuned[i]) - base[i];
    else
        for (int i = 0; i < BLOCK; i++)
            delta[i] = i < size ? WIDEN(fine_tuned[i]) - base[i] : 0.0f;
    if (model->divisor != 1.0f) {
        float divisor = model->divisor;
        for (int i = 0; i < BLOCK; i++)
            delta[i] /= divisor;
    }
    if (model->random) {
        uint32_t one = model->words[0], other = model->words[1];
        for (int i = 0; i < BLOCK; i++)
            key[i] = (int32_t)(random_of(first + (uint32_t)i, one, other) ^ 0x80000000u);
    } else
        for (int i = 0; i < BLOCK; i++)
            key[i] = key_of(delta[i]);
    for (int64_t cuts = model->cuts, n = cuts - 1; n >= 0; n--) {
        int32_t threshold = model->above[n], equal = 0;
        int64_t last = model->last[n];
        float factor = model->factor[n];
        if (n == cuts - 1)
            for (int i = 0; i < BLOCK; i++)
                scale[i] = key[i] > threshold ? factor : 0.0f;
        else
            for (int i = 0; i < BLOCK; i++)
                scale[i] = key[i] > threshold ? factor : scale[i];
        if (last < 0)
            continue;
        for (int i = 0; i < BLOCK; i++)
            equal |= key[i] == threshold;
        if (!equal)
            continue;
        if (!*hashed)
            for (int i = 0; i < BLOCK; i++)
                hash[i] = hash_of(first + (uint32_t)i);
        *hashed = 1;
        for (int i = 0; i < BLOCK; i++)
            scale[i] = (key[i] == threshold) & (hash[i] <= (uint32_t)last) ? factor : scale[i];
    }
    for (int i = 0; i < BLOCK; i++)
        delta[i] = delta[i] * scale[i] * weight;
}

/* Write base + lambda * combined deltas of the chunk [start, stop). Return how many results exceed
   the limit. `weighted` has room for a block of each model. */
FOR_THIS_PROCESSOR
int64_t OF_DTYPE(combine)(const DTYPE *base, int64_t start, int64_t stop,
                          const struct combination *combination, float (*weighted)[BLOCK],
                          float *total) {
    float lambda = combination->lambda, limit = combination->limit;
    int64_t beyond = 0;
    for (int64_t at = start; at < stop; at += BLOCK) {
        int size = stop - at < BLOCK ? (int)(stop - at) : BLOCK, hashed = 0, here = 0;
        float wide[BLOCK], sum[BLOCK];
        uint32_t hash[BLOCK];
        if (size == BLOCK)
            for (int i = 0; i < BLOCK; i++)
                wide[i] = WIDEN(base[at + i]);
        else
            for (int i = 0; i < BLOCK; i++)
                wide[i] = i < size ? WIDEN(base[at + i]) : 0.0f;
        for (int64_t m = 0; m < combination->models; m++) {
            const struct amplified_delta *model = &combination->model[m];
            OF_DTYPE(weight_delta)((const DTYPE *)model->fine_tuned + at, wide, size, model,
                                   (uint32_t)at, hash, &hashed, weighted[m]);
        }
        sum_models(combination, (const float (*)[BLOCK])weighted, sum);
        for (int i = 0; i < BLOCK; i++)
            sum[i] = sum[i] * lambda + wide[i];
        /* Written so that NaN counts as beyond the limit. */
        for (int i = 0; i < BLOCK; i++)
            here += !(__builtin_fabsf(sum[i]) <= limit);
        beyond += here;
        memcpy(total + (at - start), sum, (size_t)size * sizeof *sum);
    }
    return beyond;
}

/* Multiply, for each model, its weighted delta by a gradient, element by element, over the chunk
   [start, stop). Element i of each block is added to lanes[model][i]. `weighted` has room for a
   block. */
FOR_THIS_PROCESSOR
void OF_DTYPE(products)(const DTYPE *base, int64_t start, int64_t stop,
                        const struct combination *combination, float *weighted,
                        const float *gradient, float (*lanes)[BLOCK]) {
    for (int64_t at = start; at < stop; at += BLOCK) {
        int size = stop - at < BLOCK ? (int)(stop - at) : BLOCK, hashed = 0;
        float wide[BLOCK], along[BLOCK];
        uint32_t hash[BLOCK];
        for (int i = 0; i < BLOCK; i++)
            wide[i] = i < size ? WIDEN(base[at + i]) : 0.0f;
        for (int i = 0; i < BLOCK; i++)
            along[i] = i < size ? gradient[at - start + i] : 0.0f;
        for (int64_t m = 0; m < combination->models; m++) {
            const struct amplified_delta *model = &combination->model[m];
            OF_DTYPE(weight_delta)((const DTYPE *)model->fine_tuned + at, wide, size, model,
                                   (uint32_t)at, hash, &hashed, weighted);
            for (int i = 0; i < BLOCK; i++)
                lanes[m][i] += weighted[i] * along[i];
        }
    }
}

/* Write, for each model, its weighted delta of the chunk [start, stop) to out[model]. */
FOR_THIS_PROCESSOR
void OF_DTYPE(amplify)(const DTYPE *base, int64_t start, int64_t stop,
                       const struct combination *combination, float *const *out) {
    for (int64_t at = start; at < stop; at += BLOCK) {
        int size = stop - at < BLOCK ? (int)(stop - at) : BLOCK, hashed = 0;
        float wide[BLOCK], weighted[BLOCK];
        uint32_t hash[BLOCK];
        for (int i = 0; i < BLOCK; i++)
            wide[i] = i < size ? WIDEN(base[at + i]) : 0.0f;
        for (int64_t m = 0; m < combination->models; m++) {
            const struct amplified_delta *model = &combination->model[m];
            OF_DTYPE(weight_delta)((const DTYPE *)model->fine_tuned + at, wide, size, model,
                                   (uint32_t)at, hash, &hashed, weighted);
            /* 0 is added, as in a sum, so that no -0 remains. */
            for (int i = 0; i < BLOCK; i++)
                weighted[i] = 0.0f + weighted[i];
            memcpy(out[m] + (at - start), weighted, (size_t)size * sizeof *weighted);
        }
    }
}

/* Write base + weight * (factor * (delta / divisor)), rounded to the dtype, to the elements of
   `out` whose bit is set. The inputs hold the values of these elements only, in order. */
FOR_THIS_PROCESSOR
void OF_DTYPE(write_kept)(const DTYPE *fine_tuned, const DTYPE *base, int64_t kept,
                          const uint8_t *bits, int64_t length, float divisor, float factor,
                          float weight, DTYPE *out) {
    DTYPE ready[BLOCK];
    int64_t done = 0;
    int at = BLOCK;
    for (int64_t start = 0; start < length; start += 64) {
        uint64_t word = bits_from(bits + start / 8, length - start);
        for (; word; word &= word - 1) {
            if (at == BLOCK) {
                int size = kept - done < BLOCK ? (int)(kept - done) : BLOCK;
                float delta[BLOCK];
                OF_DTYPE(subtract)(fine_tuned + done, base + done, size, delta);
                /* 0 is added first, as in a merge, so that no -0 remains. */
                for (int i = 0; i < BLOCK; i++)
                    delta[i] = 0.0f + delta[i] / divisor * factor * weight;
                for (int i = 0; i < size; i++)
                    ready[i] = NARROW(delta[i] + WIDEN(base[done + i]));
                done += size;
                at = 0;
            }
            out[start + __builtin_ctzll(word)] = ready[at++];
        }
    }
}

#undef WIDEN
#undef NARROW
