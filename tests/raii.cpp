// raii.cpp: libquant.hpp as a program uses it: handles, exceptions, callbacks. tests/check_install.sh builds it against
// an installed library and runs it: raii MODEL FOLDER. Prints what failed; the exit code is 1 then.
#include <libquant.hpp>

#include <array>
#include <cstdio>
#include <limits>
#include <string>
#include <thread>

static int failed;
#define EXPECT(x) ((x) ? (void)0 : (void)(std::printf("raii.cpp:%d: not %s\n", __LINE__, #x), failed++))

template <class T>
constexpr bool moves_only = !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T> &&
                            std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T>;
static_assert(moves_only<libquant::context> && moves_only<libquant::model> && moves_only<libquant::session>);
static_assert(std::is_nothrow_copy_constructible_v<libquant::error>);

template <class F> static lq_status status_of(F &&call) {
    try {
        call();
    } catch (const libquant::error &e) {
        EXPECT(std::string(e.what()).find(lq_status_name(e.status())) == 0);
        EXPECT(std::string(e.what()).find(e.detail()) != std::string::npos);
        return e.status();
    }
    return LQ_OK;
}

// The three handles of a function that is left before them: a session keeps what it stands on.
static libquant::session open_session(const std::string &path) {
    libquant::context ctx;
    libquant::model model(ctx, path);
    return libquant::session(model);
}

static void tables(const libquant::context &ctx) {
    bool found = false;
    for (const auto &s : libquant::schemes()) found = found || (s.name == "q4_k_m" && !s.description.empty());
    EXPECT(found);
    EXPECT(libquant::formats().size() == lq_format_count());
    EXPECT(std::string(ctx.devices().at(0).name) == "cpu:0");
    EXPECT(libquant::version() == lq_version_string());
}

static void quantizing(const libquant::context &ctx, const std::string &src, const std::string &dst) {
    auto options = libquant::sized<lq_quantize_options>();
    options.scheme = "q8_0";
    options.force = 1;
    std::size_t tensors = 0;
    const auto result = libquant::quantize(ctx, src, dst, options, nullptr, [&](const lq_tensor_report &t) {
        EXPECT(t.size == sizeof t);
        tensors++;
    });
    EXPECT(result.tensors == tensors && tensors > 0);
    const std::string none = dst + ".none";
    EXPECT(status_of([&] {
               libquant::quantize(ctx, src, none, options, [](auto, auto, auto) { return false; });
           }) == LQ_E_CANCELLED);
    int caught = 0;
    try {
        libquant::quantize(ctx, src, none, options, [](auto, auto, auto) -> bool { throw 42; });
    } catch (int i) {
        caught = i;
    }
    EXPECT(caught == 42);
    try {
        libquant::quantize(ctx, src, none, options, nullptr, [](const lq_tensor_report &) { throw 43; });
    } catch (int i) {
        caught = i;
    }
    EXPECT(caught == 43);
    std::FILE *f = std::fopen(none.c_str(), "rb");
    EXPECT(!f);
    if (f) std::fclose(f);
}

static void models(const libquant::context &ctx, const std::string &path) {
    EXPECT(status_of([&] { libquant::model(ctx, path + ".missing"); }) == LQ_E_IO);
    libquant::model model(ctx, path);
    EXPECT(model.info().layers == 6);
    EXPECT(model.meta("general.architecture") == "llama");
    EXPECT(!model.meta("no.such.key"));
    const auto all = model.meta();
    EXPECT(!all.empty() && model.meta(all.back().first) == all.back().second);
    EXPECT(model.tensor_row(0, 0).size() == model.tensor(0).shape[0]);
    EXPECT(model.token("</s>") == model.info().eos && !model.token("no such piece"));
    const std::string text = "na\xc3\xafve \xe2\x82\xac\n";
    const auto ids = model.tokenize(text);
    EXPECT(ids.front() == model.info().bos && model.detokenize(ids) == text);

    libquant::text_stream stream(model, false);
    std::string pieces;
    for (std::size_t i = 1; i < ids.size(); i++) pieces += stream.push(ids[i]);
    EXPECT(pieces + stream.finish() == text);
}

static void sessions(const libquant::context &ctx, const std::string &path) {
    const libquant::model model(ctx, path);
    auto options = libquant::sized<lq_session_options>();
    options.context = 64;
    options.max_logits = 2;
    libquant::session session(model, options);
    const auto ids = model.tokenize("Once upon a time");
    session.decode(ids, ids.size() - 2);
    EXPECT(session.length() == ids.size());
    const auto row = session.logits(1);
    EXPECT(row.size() == model.info().vocabulary);
    const auto best = session.sample();
    EXPECT(libquant::sample_logits(row, libquant::sized<lq_sampler>()) == best);
    const auto top = session.logprobs(3);
    EXPECT(top.size() == 3 && top[0].id == best && top[0].logprob == session.logprob(best) && top[1].logprob <= top[0].logprob);
    auto never = libquant::sized<lq_sampler>();
    const lq_logit_bias ban{best, -std::numeric_limits<float>::infinity()};
    never.logit_bias = &ban, never.n_logit_bias = 1;
    EXPECT(session.sample(never) == top[1].id);
    EXPECT(libquant::sample_logits(row, never, 0, ids, &model) == top[1].id);
    EXPECT(status_of([&] { session.logits(2); }) == LQ_E_ARG);
    EXPECT(status_of([&] { session.decode(std::vector<std::int32_t>(100, 5)); }) == LQ_E_CONTEXT);
    session.decode(best);
    session.truncate(1);
    EXPECT(session.length() == 1);
    session.sync(ids);
    EXPECT(session.length() == ids.size() && session.sequence().cached == 1 && session.length(1) == 0);
    session.truncate(1);
    session.cancel();
    EXPECT(status_of([&] { session.decode(best); }) == LQ_E_CANCELLED);
    session.decode(best);

    const std::array<std::int32_t, 2> array = {5, 6};
    const std::int32_t plain[] = {7, 8};
    session.decode(array);
    session.decode(plain);
    session.decode({array.data(), 1});
    EXPECT(session.length() == 7);

    session.sync(ids);
    auto sampler = libquant::sized<lq_sampler>();
    sampler.max_tokens = 3;
    auto t = session.step(sampler);
    EXPECT(t.n == 1 && t.ids[0] == best && !t.end);
    std::string text(t.text, t.bytes);
    for (; !t.end; text.append(t.text, t.bytes)) t = session.step(sampler);
    EXPECT(t.end == LQ_END_LIMIT && t.made == 3 && t.made_bytes == text.size());
    std::array<lq_step_item, 1> items = {libquant::sized<lq_step_item>()};
    session.step(items);
    EXPECT(items[0].n == 1 && session.length() == ids.size() + 4);
    session.truncate(7);

    options.embed = 1;
    libquant::session embedder(model, options);
    auto how = libquant::sized<lq_embed_options>();
    const auto vector = embedder.embed(ids);
    EXPECT(vector.size() == model.info().embedding && vector == embedder.embed(ids));
    how.pooling = LQ_POOL_LAST;
    EXPECT(vector != embedder.embed(ids, how));
    EXPECT(status_of([&] { session.embed(ids); }) == LQ_E_ARG);

    libquant::session moved = std::move(session);
    EXPECT(moved.length() == 7 && moved.info().context == 64);
    moved = open_session(path);
    moved.decode(ids);
    EXPECT(moved.length() == ids.size() && moved.stats().prefill_tokens == ids.size());

    std::thread other([&] { moved.cancel(); });
    const auto ended = status_of([&] {
        for (;;) moved.truncate(0), moved.decode(ids);
    });
    other.join();
    EXPECT(ended == LQ_E_CANCELLED);
}

/* On every device that is here: the processor's greedy choice, a plan in bytes, hidden rows that cross a border. */
static void devices(const libquant::context &ctx, const std::string &path) {
    auto where = libquant::sized<lq_model_options>();
    where.device = "abacus:0";
    EXPECT(status_of([&] { libquant::model(ctx, path, where); }) == LQ_E_ARG);
    where.device = nullptr;
    where.gpu_layers = 2;
    EXPECT(status_of([&] { libquant::model(ctx, path, where); }) == LQ_E_ARG);

    auto options = libquant::sized<lq_session_options>();
    options.activations = "f32";
    const libquant::model here(ctx, path);
    EXPECT(here.plan(options).device[0] == 0 && here.plan(options).device_total == 0);
    libquant::session reference(here, options);
    const auto ids = here.tokenize("Once upon a time");
    reference.decode(ids);
    for (const auto &d : ctx.devices()) {
        const std::string name = d.name;
        if (name == "cpu:0") continue;
        where.device = name.c_str();
        where.plan_only = 1;
        const libquant::model planned(ctx, path, where);
        EXPECT(status_of([&] { libquant::session(planned, options); }) == LQ_E_ARG);
        where.plan_only = 0;
        const libquant::model model(ctx, path, where);
        const auto plan = model.plan(options);
        EXPECT(plan.device == name && plan.device_layers == 2 && plan.border_bytes == 4u * here.info().embedding);
        EXPECT(planned.plan(options).device_total == plan.device_total);
        libquant::session session(model, options);
        session.decode(ids);
        EXPECT(session.sample() == reference.sample() && session.stats().border_bytes > 0);
    }
}

static void scoring(const libquant::context &ctx, const std::string &src, const std::string &path) {
    const libquant::model f16(ctx, src), q8(ctx, path);
    auto options = libquant::sized<lq_session_options>();
    options.max_logits = 256;
    libquant::session reference(f16, options), candidate(q8, options);
    std::string text;
    for (int i = 0; i < 60; i++) text += "The quick brown fox jumps over the lazy dog. ";
    const auto ids = f16.tokenize(text);
    std::uint64_t last = 0, total = 0;
    const auto alone = candidate.evaluate(ids, libquant::sized<lq_eval_options>(), [&](auto done, auto all, auto) {
        last = done, total = all;
        return true;
    });
    EXPECT(total > 0 && last <= total);
    libquant::session *const candidates[] = {&candidate};
    const auto results = libquant::compare(reference, candidates, ids);
    EXPECT(results.size() == 2 && results[1].ppl == alone.ppl && results[1].kld_mean >= 0 && results[0].kld_mean == 0);

    auto how = libquant::sized<lq_calibrate_options>();
    how.force = 1;
    const auto made = reference.calibrate(ids, path + ".stats", how);
    EXPECT(made.entries > 0 && made.tokens > 0);
    auto quantize = libquant::sized<lq_quantize_options>();
    const std::string stats = path + ".stats";
    quantize.scheme = "q4_0";
    quantize.importance = stats.c_str();
    quantize.force = 1;
    EXPECT(libquant::quantize(ctx, src, path + ".q4_0", quantize).with_importance == made.entries);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    const std::string path = std::string(argv[2]) + "/raii.gguf";
    auto bad = libquant::sized<lq_options>();
    bad.isa = "z80";
    EXPECT(status_of([&] { libquant::context c(bad); }) == LQ_E_ARG || failed == 0);
    libquant::context ctx(libquant::sized<lq_options>(), [](lq_log_level, std::string_view) { throw 1; });
    tables(ctx);
    quantizing(ctx, argv[1], path);
    models(ctx, path);
    sessions(ctx, path);
    devices(ctx, path);
    scoring(ctx, argv[1], path);
    return failed != 0;
}
