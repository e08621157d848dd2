/* cli_commands.c: the commands of `lq` as a table, for whatever walks them: the program, manual pages, completion. */
#include "cli.h"

#define COMMAND(x) extern const cli_command cli_command_##x;
#include "commands.def"
#undef COMMAND
static const cli_command *const commands[] = {
#define COMMAND(x) &cli_command_##x,
#include "commands.def"
#undef COMMAND
};

size_t cli_command_count(void) { return CLI_COUNT(commands); }
const cli_command *cli_command_at(size_t i) { return i < CLI_COUNT(commands) ? commands[i] : NULL; }

const char cli_first_steps[] =
    "  lq quantize my-model/ my-model.gguf --scheme q4_k_m     four bits per weight, from a Hugging Face folder\n"
    "  lq run my-model.gguf -p 'Once upon a time' -n 64        let it write\n"
    "  lq bench quality                                        what every scheme costs, on a bundled model\n";
