// generate.cpp: load a model, let it write, print the text as it comes.
//
//     c++ -std=c++17 generate.cpp $(pkg-config --cflags --libs libquant) -o generate
//     ./generate MODEL PROMPT [TOKENS [TEMPERATURE]]
#include <cstdlib>
#include <iostream>
#include <libquant.hpp>

int main(int argc, char **argv) {
    if (argc < 3) return std::cerr << "usage: generate MODEL PROMPT [TOKENS [TEMPERATURE]]\n", 2;
    auto sampler = libquant::sized<lq_sampler>(); // zeros: always the most likely token
    sampler.max_tokens = argc > 3 ? static_cast<std::uint32_t>(std::atol(argv[3])) : 32;
    if (argc > 4) sampler.temperature = std::strtof(argv[4], nullptr);

    try {
        const libquant::context ctx(libquant::sized<lq_options>(), [](lq_log_level level, std::string_view message) {
            if (level <= LQ_LOG_WARN) std::cerr << message << '\n';
        });
        const libquant::model model(ctx, argv[1]);
        libquant::session session(model);

        session.decode(model.tokenize(argv[2]));
        std::cout << argv[2];
        lq_step_item step;
        do {
            step = session.step(sampler);
            std::cout.write(step.text, static_cast<std::streamsize>(step.bytes)).flush();
        } while (!step.end);
        std::cout << '\n';
    } catch (const libquant::error &e) {
        std::cerr << e.what() << '\n';
        return 1;
    }
    return 0;
}
