/* stream.h: a model run over many samples at once, layer by layer and, within a layer, stage by stage, so that weights
 * can be replaced on the way by what the inputs ask for.
 *
 * A stage is the products that read the same input, and the steps that follow up to the next product. All samples pass
 * a stage before the first enters the next one; what they carry from one to the other lies in memory, or in a file
 * where that is to be saved. Stages come from the step tables: nothing here knows an architecture. Refuses models on a
 * device, those with experts or recurrent state, and tables whose keys and queries meet across stages. Layer L3. */
#ifndef Q_STREAM_H
#define Q_STREAM_H

#include "engine.h"

typedef struct q_stream q_stream;

/* Products that read the same input of a layer. */
typedef struct q_stage {
    int32_t layer;
    const q_inst *products; /* consecutive steps */
    int32_t n_products;
    int32_t k;
} q_stage;

typedef struct q_stream_options {
    const int32_t *ids;     /* [samples][window] */
    uint32_t samples, window, threads;
    const int *cancel;
} q_stream_options;

/* Positioned before the first stage of the first layer, with nothing run: see q_stream_begin. Before that, room is
 * made. */
lq_status q_stream_open(lq_model *m, const q_stream_options *options, q_stream **out);
/* Room for what samples carry: in memory, or with `spool` in a file beside that path. */
lq_status q_stream_room(q_stream *s, const char *spool);
void q_stream_close(q_stream *s); /* NULL is fine */

uint32_t q_stream_stages(const q_stream *s);
const q_stage *q_stream_stage(const q_stream *s, uint32_t i);
/* The item of the model's binding whose rows a product uses. */
uint32_t q_stream_item(const q_stream *s, const q_inst *product);
/* What it asks of the allocator: q_stream_room, and all that was asked before; while all samples are embedded, or a
 * stage runs or is tried, besides. */
uint64_t q_stream_bytes(const q_stream *s, bool spool);
lq_status q_stream_begin_bytes(q_stream *s, uint64_t *bytes);
lq_status q_stream_stage_bytes(q_stream *s, uint32_t stage, uint64_t *bytes);

/* The embedding, all rows, until the stream is closed; before q_stream_begin. */
void q_stream_embed(q_stream *s, const q_format *format, const uint8_t *data);
/* Embed all samples: the first stage is next. */
lq_status q_stream_begin(q_stream *s);
/* All that a sample carries into the next stage, as q_stream_floats says how many: `restore` for every sample, then
 * q_stream_begin_at, stand for q_stream_begin and the stages before. */
uint64_t q_stream_floats(const q_stream *s, uint32_t stage);
lq_status q_stream_save(q_stream *s, uint32_t sample, float *rows);
lq_status q_stream_restore(q_stream *s, uint32_t stage, uint32_t sample, const float *rows);
void q_stream_begin_at(q_stream *s, uint32_t stage);

/* The next stage; q_stream_stages when all have run. */
uint32_t q_stream_at(const q_stream *s);
/* Its input of one sample: `window` columns of k floats, *stride apart; valid until the next call. */
lq_status q_stream_input(q_stream *s, uint32_t sample, const float **x, int64_t *stride);
/* Run its products with other weights: all rows of an item as float32; valid until the stage has run. */
void q_stream_replace(q_stream *s, uint32_t item, const float *data);
/* What the model's own weights, or those that replaced them in the next stage, make of every `step`th sample, up to and
 * including the next step that writes slot 1: its rows, q_stream_tried floats a sample. Nothing is carried on, and
 * what replaced weights may be replaced again. */
lq_status q_stream_try(q_stream *s, uint32_t samples, uint32_t step, float *out);
uint64_t q_stream_tried(const q_stream *s);
/* Run the stage over all samples; `each` (may be NULL) is told after every one, and a status other than LQ_OK ends
 * it. */
lq_status q_stream_advance(q_stream *s, lq_status (*each)(void *user), void *user);

#endif
