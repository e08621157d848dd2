/* libquant.hpp: libquant for C++17: libquant.h with handles that close themselves, exceptions and containers.
 *
 * Header only; link as for C (pkg-config libquant). libquant.h says what each call means: shapes, units, limits; here
 * stands what differs.
 *
 * Rules that hold for every function here
 *   Errors     A call that fails throws libquant::error, which has the lq_status and the sentence of lq_error_detail().
 *              What throws leaves its object as it was, unless status() <= LQ_FATAL: then the object may only be
 *              destroyed. std::bad_alloc can come from the containers.
 *   Handles    context, model and session are moved, never copied, and close themselves. A model keeps its context
 *              alive and a session its model: destroy them in any order. A handle that was moved from may only be
 *              destroyed or assigned to.
 *   Options    The structs of libquant.h, made by sized<T>(): zeroed, with `size` set. Zero fields mean defaults.
 *   Input      Anything contiguous: a vector, an array, a pointer with a count (view). Read during the call only.
 *   Callbacks  Any callable; they run on the calling thread, except log. An exception in one cancels the call, crosses
 *              no frame of C and is thrown again from the call. An exception in log is dropped: it has no call.
 *   Threads    As in libquant.h: context and model from any thread, a session from one at a time, session::cancel from
 *              any thread or a signal handler.
 */
#ifndef LIBQUANT_HPP
#define LIBQUANT_HPP

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "libquant.h"

namespace libquant {

/* ------------------------------------------------------------------------------------------------ errors, structs */

/* what() is "LQ_E_FORMAT: model.gguf: ...". */
class error : public std::runtime_error {
  public:
    error(lq_status status, const std::string &detail)
        : std::runtime_error(std::string(lq_status_name(status)) + (detail.empty() ? "" : ": ") + detail),
          status_(status), detail_(std::make_shared<const std::string>(detail)) {}
    lq_status status() const noexcept { return status_; }
    /* The sentence alone. */
    const std::string &detail() const noexcept { return *detail_; }

  private:
    lq_status status_;
    std::shared_ptr<const std::string> detail_; /* copies of an exception must not throw */
};

/* Throw what the last call on this thread failed with. */
inline void check(lq_status status) {
    if (status != LQ_OK) throw error(status, lq_error_detail());
}

/* A struct of libquant.h that begins with `size`: zeroed, its size set.
 *     auto options = libquant::sized<lq_session_options>();
 *     options.context = 4096; */
template <class T> T sized() {
    T t{};
    t.size = static_cast<std::uint32_t>(sizeof t);
    return t;
}

/* `size` elements from `data` on, borrowed. From a container (an lvalue or a temporary within the call), an array, or
 * a pointer and a count. */
template <class T> class view {
  public:
    view() = default;
    view(T *data, std::size_t size) : data_(data), size_(size) {}
    template <std::size_t N> view(T (&array)[N]) : data_(array), size_(N) {}
    template <class C, class = std::enable_if_t<std::is_convertible_v<decltype(std::declval<C &>().data()), T *> &&
                                                !std::is_same_v<std::decay_t<C>, view>>>
    view(C &&container) : data_(container.data()), size_(container.size()) {}
    T *data() const { return data_; }
    std::size_t size() const { return size_; }
    bool empty() const { return size_ == 0; }
    T *begin() const { return data_; }
    T *end() const { return data_ + size_; }
    T &operator[](std::size_t i) const { return data_[i]; }

  private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};
using ids = view<const std::int32_t>;

/* ------------------------------------------------------------------------------------------------ callbacks */

using log_function = std::function<void(lq_log_level level, std::string_view message)>;
/* `done` of `total` units; false stops the call, which then throws LQ_E_CANCELLED. */
using progress_function = std::function<bool(std::uint64_t done, std::uint64_t total, std::string_view what)>;
using report_function = std::function<void(const lq_tensor_report &tensor)>;

namespace detail {
/* What the callbacks of one call share. */
struct calls {
    const progress_function *progress = nullptr;
    const report_function *report = nullptr;
    std::exception_ptr thrown;

    static int on_progress(void *user, std::uint64_t done, std::uint64_t total, const char *what) noexcept {
        auto *c = static_cast<calls *>(user);
        if (c->thrown) return 1;
        try {
            return c->progress && *c->progress && !(*c->progress)(done, total, what ? what : "");
        } catch (...) {
            c->thrown = std::current_exception();
            return 1;
        }
    }
    static void on_report(void *user, const lq_tensor_report *tensor) noexcept {
        auto *c = static_cast<calls *>(user);
        try {
            if (!c->thrown) (*c->report)(*tensor);
        } catch (...) {
            c->thrown = std::current_exception(); /* the next progress ends the call */
        }
    }
    void finish(lq_status status) const {
        if (thrown) std::rethrow_exception(thrown);
        check(status);
    }
};

/* Variable output: ask, make room, ask again. `call(data, &n)` is the function of libquant.h. */
template <class C, class F> C collect(std::size_t guess, F &&call) {
    C out;
    out.resize(guess);
    for (;;) {
        std::size_t n = out.size();
        const lq_status status = call(out.data(), &n);
        if (status == LQ_OK) {
            out.resize(n);
            return out;
        }
        if (status != LQ_E_ARG || n <= out.size()) check(status);
        out.resize(n);
    }
}
} // namespace detail

/* ------------------------------------------------------------------------------------------------ version, tables */

inline std::string version() { return lq_version_string(); }

inline std::vector<lq_format_info> formats() {
    std::vector<lq_format_info> all(lq_format_count(), sized<lq_format_info>());
    for (std::size_t i = 0; i < all.size(); i++) check(lq_format_info_get(static_cast<std::uint32_t>(i), &all[i]));
    return all;
}

struct scheme {
    std::string_view name, description; /* static storage */
};
inline std::vector<scheme> schemes() {
    std::vector<scheme> all;
    for (std::uint32_t i = 0; i < lq_scheme_count(); i++) {
        const char *description = "", *name = lq_scheme_name(i, &description);
        all.push_back({name, description});
    }
    return all;
}

/* ------------------------------------------------------------------------------------------------ context */

class context {
  public:
    /* `options.log` stays as it is given here, unless a function is given too. */
    explicit context(const lq_options &options = sized<lq_options>(), log_function log = nullptr)
        : state_(std::make_shared<state>()) {
        lq_options o = options;
        state_->log = std::move(log);
        if (state_->log) {
            o.log = [](void *user, lq_log_level level, const char *message) {
                try {
                    static_cast<state *>(user)->log(level, message);
                } catch (...) {
                }
            };
            o.log_user = state_.get();
        }
        check(lq_open(&o, &state_->ctx));
    }
    context(context &&) = default;
    context &operator=(context &&) = default;
    context(const context &) = delete;
    context &operator=(const context &) = delete;

    /* Where models can run: the processor, then the others. A device that is there but lacks what every kernel needs,
     * or that failed, is left out. */
    std::vector<lq_device_info> devices() const {
        std::vector<lq_device_info> all;
        for (std::uint32_t i = 0; i < lq_device_count(get()); i++) {
            auto d = sized<lq_device_info>();
            const lq_status status = lq_device_info_get(get(), i, &d);
            if (status == LQ_E_UNSUPPORTED || status == LQ_E_DEVICE) continue;
            check(status);
            all.push_back(d);
        }
        return all;
    }
    lq_ctx *get() const noexcept { return state_->ctx; }

  private:
    friend class model;
    struct state {
        lq_ctx *ctx = nullptr;
        log_function log; /* called until lq_close is over */
        ~state() { lq_close(ctx); }
        state() = default;
        state(const state &) = delete;
        state &operator=(const state &) = delete;
    };
    std::shared_ptr<state> state_;
};

/* lq_quantize: write `src` to the GGUF file `dst`. `options.scheme` is required; its progress, report and user are
 * replaced by the functions here. */
inline lq_quantize_result quantize(const context &ctx, const std::string &src, const std::string &dst,
                                   const lq_quantize_options &options, const progress_function &progress = nullptr,
                                   const report_function &report = nullptr) {
    auto result = sized<lq_quantize_result>();
    detail::calls calls;
    lq_quantize_options o = options;
    calls.progress = &progress;
    calls.report = &report;
    o.progress = detail::calls::on_progress;
    o.report = report ? detail::calls::on_report : nullptr;
    o.user = &calls;
    calls.finish(lq_quantize(ctx.get(), src.c_str(), dst.c_str(), &o, &result));
    return result;
}

/* ------------------------------------------------------------------------------------------------ model */

class model {
  public:
    /* On another device than the processor: options.device is a name of context::devices(). */
    model(const context &ctx, const std::string &path, const lq_model_options &options = sized<lq_model_options>())
        : state_(std::make_shared<state>()) {
        state_->ctx = ctx.state_;
        check(lq_model_open(ctx.get(), path.c_str(), &options, &state_->model));
        state_->info = sized<lq_model_info>();
        check(lq_model_info_get(get(), &state_->info));
    }
    model(model &&) = default;
    model &operator=(model &&) = default;
    model(const model &) = delete;
    model &operator=(const model &) = delete;

    const lq_model_info &info() const noexcept { return state_->info; }

    /* A metadata value as text; nothing when there is no such key. */
    std::optional<std::string> meta(const std::string &key) const {
        if (!has_meta(key)) return std::nullopt;
        return meta_text(key.c_str(), 0, nullptr);
    }
    /* All metadata in file order, as pairs of key and text. */
    std::vector<std::pair<std::string, std::string>> meta() const {
        std::vector<std::pair<std::string, std::string>> all;
        for (std::uint32_t i = 0; has_meta_at(i); i++) {
            const char *name = "";
            std::string text = meta_text(nullptr, i, &name);
            all.emplace_back(name, std::move(text));
        }
        return all;
    }

    /* The tensor at an index below info().tensors. Its strings live as long as the model is open. */
    lq_tensor_info tensor(std::uint32_t index) const {
        auto t = sized<lq_tensor_info>();
        check(lq_model_tensor(get(), index, &t));
        return t;
    }
    std::vector<float> tensor_row(std::uint32_t index, std::uint64_t row) const {
        std::vector<float> out(static_cast<std::size_t>(tensor(index).shape[0]));
        check(lq_model_tensor_row(get(), index, row, out.data()));
        return out;
    }

    lq_plan_info plan(const lq_session_options &options = sized<lq_session_options>()) const {
        auto p = sized<lq_plan_info>();
        check(lq_model_plan(get(), &options, &p));
        return p;
    }

    std::vector<std::int32_t> tokenize(std::string_view text, std::uint32_t flags = LQ_TOKENIZE_BOS) const {
        return detail::collect<std::vector<std::int32_t>>(text.size() + 8, [&](std::int32_t *data, std::size_t *n) {
            return lq_tokenize(get(), text.data(), text.size(), flags, data, n);
        });
    }
    std::string detokenize(ids tokens, std::uint32_t flags = 0) const {
        return detail::collect<std::string>(tokens.size() * 8 + 16, [&](char *data, std::size_t *n) {
            return lq_detokenize(get(), tokens.data(), tokens.size(), flags, data, n);
        });
    }
    /* The id of a token by its exact spelling. */
    std::optional<std::int32_t> token(const std::string &piece) const {
        const std::int32_t id = lq_token_find(get(), piece.c_str());
        return id < 0 ? std::nullopt : std::optional<std::int32_t>(id);
    }
    lq_model *get() const noexcept { return state_->model; }

  private:
    friend class session;
    friend class text_stream;
    struct state {
        std::shared_ptr<context::state> ctx;
        lq_model *model = nullptr;
        lq_model_info info{};
        ~state() { lq_model_close(model); }
        state() = default;
        state(const state &) = delete;
        state &operator=(const state &) = delete;
    };
    bool has_meta(const std::string &key) const {
        std::size_t n = 0; /* too small for any text, so that only a missing key leaves it */
        return lq_model_meta(get(), key.c_str(), 0, nullptr, nullptr, &n) == LQ_OK || n > 0;
    }
    bool has_meta_at(std::uint32_t index) const {
        std::size_t n = 0;
        return lq_model_meta(get(), nullptr, index, nullptr, nullptr, &n) == LQ_OK || n > 0;
    }
    std::string meta_text(const char *key, std::uint32_t index, const char **name) const {
        auto text = detail::collect<std::string>(
            64, [&](char *data, std::size_t *n) { return lq_model_meta(get(), key, index, name, data, n); });
        text.pop_back(); /* the terminating NUL */
        return text;
    }
    std::shared_ptr<state> state_;
};

/* Tokens to text as they come: push gives the bytes that an id completes, and holds back a UTF-8 character whose last
 * bytes are still to come; finish gives those. `after_text`: the tokens follow others (more than BOS), so that the
 * space before the first word is kept. */
class text_stream {
  public:
    explicit text_stream(const model &m, bool after_text = true) : model_(m.state_), after_text_(after_text) {}

    std::string push(std::int32_t id) {
        pending_.push_back(id);
        std::string known = text(LQ_DETOKENIZE_STREAM), all = text(0);
        const bool complete = known.size() == all.size();
        std::string fresh = known.size() > printed_ ? known.substr(printed_) : std::string();
        printed_ = known.size() > printed_ ? known.size() : printed_;
        if (complete) next();
        return fresh;
    }
    std::string finish() {
        const std::string all = pending_.empty() ? std::string() : text(0);
        std::string rest = all.size() > printed_ ? all.substr(printed_) : std::string();
        next();
        return rest;
    }

  private:
    void next() {
        after_text_ = after_text_ || !pending_.empty();
        pending_.clear();
        printed_ = 0;
    }
    std::string text(std::uint32_t flags) const {
        if (after_text_) flags |= LQ_DETOKENIZE_MIDDLE;
        return detail::collect<std::string>(64, [&](char *data, std::size_t *n) {
            return lq_detokenize(model_->model, pending_.data(), pending_.size(), flags, data, n);
        });
    }
    std::shared_ptr<model::state> model_;
    std::vector<std::int32_t> pending_;
    std::size_t printed_ = 0;
    bool after_text_;
};

/* ------------------------------------------------------------------------------------------------ session */

class session {
  public:
    explicit session(const model &m, const lq_session_options &options = sized<lq_session_options>())
        : model_(m.state_) {
        lq_session *s = nullptr;
        check(lq_session_open(m.get(), &options, &s));
        session_.reset(s);
    }
    session(session &&) = default;
    session &operator=(session &&other) noexcept {
        session_ = std::move(other.session_); /* closes the old session while its model is open */
        model_ = std::move(other.model_);
        return *this;
    }
    session(const session &) = delete;
    session &operator=(const session &) = delete;

    /* Append tokens and evaluate them. Logits are kept for the last one, for those from `logits_from` on, or for none
     * (logits_from = tokens.size()). */
    void decode(ids tokens) { decode(tokens, tokens.empty() ? 0 : tokens.size() - 1); }
    void decode(ids tokens, std::size_t logits_from) {
        decode(lq_item{0, tokens.data(), tokens.size(), logits_from});
    }
    void decode(std::int32_t id) { decode(lq_item{0, &id, 1, 0}); }
    /* Tokens of several sequences at once. */
    void decode(const lq_item &item) { check(lq_decode(get(), &item, 1)); }
    void decode(view<const lq_item> items) { check(lq_decode(get(), items.data(), items.size())); }
    /* Make the sequence these tokens, and evaluate only what is not known; logits for the last one. */
    void sync(ids tokens, std::uint32_t sequence = 0) {
        check(lq_sync(get(), sequence, tokens.data(), tokens.size(), tokens.empty() ? 0 : tokens.size() - 1));
    }

    /* A row of the logits that the last decode kept: borrowed until the next call on the session. */
    view<const float> logits(std::uint32_t row = 0) const {
        const float *data = nullptr;
        check(lq_logits(get(), row, &data));
        return {data, model_->info.vocabulary};
    }
    /* Choose a token from the last row, or another; without a sampler the most likely one. */
    std::int32_t sample() { return sample_with(nullptr, last_row); }
    std::int32_t sample(const lq_sampler &sampler, std::uint32_t row = last_row) { return sample_with(&sampler, row); }

    /* What the model gives to the token `id`, and the `n` most likely ones in descending order. */
    float logprob(std::int32_t id, std::uint32_t row = last_row) {
        float value = 0;
        check(lq_logprobs(get(), row, id, &value, nullptr, 0));
        return value;
    }
    std::vector<lq_logprob> logprobs(std::size_t n, std::uint32_t row = last_row) {
        std::vector<lq_logprob> top(n);
        check(lq_logprobs(get(), row, -1, nullptr, top.data(), n));
        return top;
    }
    /* Let a sequence go on by a token or several; what the result points to lives until the next call on the session.
     *     do { t = session.step(sampler); std::fwrite(t.text, 1, t.bytes, stdout); } while (!t.end); */
    lq_step_item step(const lq_sampler &sampler = sized<lq_sampler>(), std::uint32_t sequence = 0) {
        auto item = sized<lq_step_item>();
        item.sequence = sequence;
        item.sampler = &sampler;
        check(lq_step(get(), &item, 1));
        return item;
    }
    /* Several at once. */
    void step(view<lq_step_item> items) { check(lq_step(get(), items.data(), items.size())); }

    std::uint32_t length(std::uint32_t sequence = 0) const noexcept { return lq_seq_length(get(), sequence); }
    void truncate(std::uint32_t length, std::uint32_t sequence = 0) { check(lq_seq_truncate(get(), sequence, length)); }
    void fork(std::uint32_t from, std::uint32_t to) { check(lq_seq_fork(get(), from, to)); }
    /* A sequence as bytes, and back. */
    void save(lq_write_bytes write, void *user, std::uint32_t sequence = 0) {
        check(lq_seq_save(get(), sequence, write, user));
    }
    void load(lq_read_bytes read, void *user, std::uint32_t sequence = 0) {
        check(lq_seq_load(get(), sequence, read, user));
    }
    lq_seq_info sequence(std::uint32_t sequence = 0) const {
        lq_seq_info info{};
        info.size = sizeof info;
        check(lq_seq_info_get(get(), sequence, &info));
        return info;
    }

    /* End the running call with LQ_E_CANCELLED, or else the next one. From any thread or a signal handler. */
    void cancel() noexcept { lq_session_cancel(get()); }

    lq_session_info info() const {
        auto i = sized<lq_session_info>();
        check(lq_session_info_get(get(), &i));
        return i;
    }
    lq_stats stats() const {
        auto s = sized<lq_stats>();
        check(lq_session_stats(get(), &s));
        return s;
    }

    /* A vector for each text, of a session opened with `embed`: [texts][embedding]. */
    std::vector<float> embed(view<const lq_item> texts, const lq_embed_options &options = sized<lq_embed_options>()) {
        std::vector<float> out(texts.size() * model_->info.embedding);
        check(lq_embed(get(), texts.data(), texts.size(), &options, out.data()));
        return out;
    }
    std::vector<float> embed(ids text, const lq_embed_options &options = sized<lq_embed_options>()) {
        const lq_item item{0, text.data(), text.size(), 0};
        return embed(view<const lq_item>(&item, 1), options);
    }

    /* Perplexity of a text; `options.progress` and its user are replaced by the function here. */
    lq_eval_result evaluate(ids tokens, const lq_eval_options &options = sized<lq_eval_options>(),
                            const progress_function &progress = nullptr) {
        auto result = sized<lq_eval_result>();
        detail::calls calls;
        lq_eval_options o = options;
        calls.progress = &progress;
        o.progress = detail::calls::on_progress;
        o.user = &calls;
        calls.finish(lq_evaluate(get(), tokens.data(), tokens.size(), &o, &result));
        return result;
    }

    /* Write what a text says about the importance of weights to the file `dst`, for lq_quantize_options.importance. */
    lq_calibrate_result calibrate(ids tokens, const std::string &dst,
                                  const lq_calibrate_options &options = sized<lq_calibrate_options>(),
                                  const progress_function &progress = nullptr) {
        auto result = sized<lq_calibrate_result>();
        detail::calls calls;
        lq_calibrate_options o = options;
        calls.progress = &progress;
        o.progress = detail::calls::on_progress;
        o.user = &calls;
        calls.finish(lq_calibrate(get(), tokens.data(), tokens.size(), dst.c_str(), &o, &result));
        return result;
    }
    lq_session *get() const noexcept { return session_.get(); }

  private:
    static constexpr std::uint32_t last_row = static_cast<std::uint32_t>(LQ_ROW_LAST);
    std::int32_t sample_with(const lq_sampler *sampler, std::uint32_t row) {
        std::int32_t id = -1;
        check(lq_sample(get(), row, sampler, &id));
        return id;
    }
    struct closer {
        void operator()(lq_session *s) const noexcept { lq_session_close(s); }
    };
    std::shared_ptr<model::state> model_; /* before session_, so that it is closed after it */
    std::unique_ptr<lq_session, closer> session_;
};

/* lq_compare: score candidates against a reference over one text. The first result is the reference's own, then one
 * per candidate, in their order. */
inline std::vector<lq_eval_result> compare(session &reference, view<session *const> candidates, ids tokens,
                                           const lq_eval_options &options = sized<lq_eval_options>(),
                                           const progress_function &progress = nullptr) {
    std::vector<lq_eval_result> results(candidates.size() + 1, sized<lq_eval_result>());
    std::vector<lq_session *> handles;
    detail::calls calls;
    lq_eval_options o = options;
    for (session *s : candidates) handles.push_back(s->get());
    calls.progress = &progress;
    o.progress = detail::calls::on_progress;
    o.user = &calls;
    calls.finish(lq_compare(reference.get(), handles.data(), handles.size(), tokens.data(), tokens.size(), &o,
                            &results[0], results.data() + 1));
    return results;
}

/* Choose a token from any row of logits, after the tokens `before`; the draw is that of `position`. Samplers with dry_breakers
 * need a model. */
inline std::int32_t sample_logits(view<const float> logits, const lq_sampler &sampler, std::uint64_t position = 0,
                                  ids before = {}, const model *texts = nullptr) {
    std::int32_t id = -1;
    check(lq_sample_logits(texts ? texts->get() : nullptr, logits.data(), logits.size(), &sampler, before.data(),
                           before.size(), position, &id));
    return id;
}

} // namespace libquant

#endif
