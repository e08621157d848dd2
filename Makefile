# libquant: one Makefile, everything in build/. `make help` lists the goals.
#
# Files are found by wildcard: a new .c in a known folder is built without a line here.
# Variables: CC, CPPFLAGS, CFLAGS, LDFLAGS, WERROR=1 (warnings are errors), SAN=address|undefined|thread (or
# address,undefined; built in build-SAN), COV=1 (gcc's coverage), SETUP=0 (install nothing), B (build folder), JOBS (tests
# or fuzz targets at once), ONLY (tests to run), TIME (seconds per fuzz target), NAME (fuzz targets to run), V=1 (show the
# commands); where things are installed: see below.

comma := ,
B ?= build$(if $(SAN),-$(subst $(comma),-,$(SAN)))
# V=1 shows the commands
ifndef V
Q := @
say = @echo "  $(1)  $@"
endif
CC ?= cc
# gcc also where make's built-in default is cc
ifeq ($(origin CC),default)
CC := gcc
endif
CFLAGS ?= -O2 -g
WARN := -Wall -Wextra -Wconversion -Wshadow -Wstrict-prototypes -Wpointer-arith
STD := -std=c11 -D_GNU_SOURCE -ffp-contract=off -fno-math-errno -fvisibility=hidden -fPIC -pthread
ifdef WERROR
WARN += -Werror
endif
ifdef SAN
STD += -fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all -DQ_SANITIZED
LDSAN := -fsanitize=$(SAN)
endif
ifdef COV
STD += --coverage
LDSAN := --coverage
endif
# Instrumented builds are some ten times slower: tests whose length is statistics, not coverage, do less there.
ifneq (,$(SAN)$(COV))
STD += -DT_SLOW=1
export T_SLOW := 1
endif
# ThreadSanitizer looks for races and slows arithmetic fifty times: what it leaves out checks scripts, figures of quality,
# damaged files, kernels called by one thread, file calls, kills and devices through drivers, which it does not see into;
# test_threads, test_cpu, test_engine, test_moe, test_pack, test_quantize and the other cli_* run the same threads.
ifeq ($(SAN),thread)
export WITHOUT ?= check_* test_quality test_corrupt test_determinism test_attention test_kernels test_products test_steps test_io test_kill* \
    test_nomem test_backend* test_device test_vulkan cli_bench* cli_calibrate.sh cli_completion.sh cli_device.sh cli_man.sh cli_quantize.sh
else ifneq (,$(SAN)) # the first compiles the library as one file, which no sanitizer sees; the others compare bits and figures
# of quality for many minutes, by ways that test_kernels, test_products and test_quantize go
export WITHOUT ?= check_embed.sh test_determinism test_quality
endif
ALL_CFLAGS = $(STD) $(WARN) $(VULKAN) $(CPPFLAGS) $(CFLAGS) -I$(B)/gen
LDLIBS := -lm -pthread
JSON_LIBS := -ljansson
# 0.1.0, typed in libquant.h alone; its first number is that of the SONAME
VERSION := $(shell sed -n 's/^.define LQ_VERSION_[MP][A-Z]* *//p' include/libquant.h | paste -sd.)
ABI := $(firstword $(subst ., ,$(VERSION)))
TEST_LIBS := $(shell pkg-config --libs check 2>/dev/null || echo -lcheck)

ARCH := $(shell $(CC) -dumpmachine)
KERNEL_DIRS := kernels/ref kernels/cpu
ifneq (,$(findstring x86_64,$(ARCH)))
KERNEL_DIRS += kernels/cpu/x86
endif
ifneq (,$(findstring aarch64,$(ARCH)))
KERNEL_DIRS += kernels/cpu/arm
endif
# The Vulkan backend needs a compiler of shaders and Vulkan's headers; the loader's library only when it runs.
HAVE_VULKAN := $(and $(shell command -v glslc),$(shell echo '\#include <vulkan/vulkan.h>' | $(CC) $(CPPFLAGS) -E - >/dev/null 2>&1 && echo 1))
ifneq (,$(HAVE_VULKAN))
KERNEL_DIRS += kernels/vulkan
VULKAN := -DQ_VULKAN
endif
LIB_DIRS := libquant libquant/formats libquant/quantizers libquant/transforms libquant/loaders libquant/archs \
            libquant/tokenizers $(KERNEL_DIRS)
LIB_SRC := $(foreach d,$(LIB_DIRS),$(wildcard $(d)/*.c))
LIB_OBJ := $(LIB_SRC:%.c=$(B)/obj/%.o)
TOOL_SRC := $(wildcard tools/*.c) $(wildcard bench/*.c)
TOOL_OBJ := $(TOOL_SRC:%.c=$(B)/obj/%.o)
TEST_SRC := $(wildcard tests/test_*.c)
TEST_BIN := $(TEST_SRC:tests/%.c=$(B)/tests/%)
TEST_SHIM := $(patsubst tests/%.c,$(B)/tests/%.so,$(wildcard tests/shim_*.c))
TEST_MOCK := $(if $(HAVE_VULKAN),$(B)/tests/mock/libvulkan.so.1)
TEST_HELP := $(patsubst tests/%.c,$(B)/obj/tests/%.o,$(wildcard tests/help_*.c))
FUZZ_SRC := $(wildcard tests/fuzz_*.c)
FUZZ_BIN := $(foreach n,$(or $(NAME),$(FUZZ_SRC:tests/fuzz_%.c=%)),$(B)/fuzz/fuzz_$(n))
REPLAY_BIN := $(FUZZ_SRC:tests/fuzz_%.c=$(B)/replay/%)
RECIPES := $(wildcard libquant/recipes/*.txt)

.PHONY: all lib tools test test-aarch64 analyze check demo bench fuzz coverage clean help setup tests-build embed manual install uninstall
.DEFAULT_GOAL := all
# Keep objects that only pattern rules mention: a fuzz target would compile the whole library again.
.SECONDARY:

all: lib tools
lib: $(B)/libquant.a $(B)/libquant.so
tools: $(B)/lq

# Formats decode the same bits everywhere: keep their arithmetic as written.
$(B)/obj/libquant/formats/%.o: STD += -DQ_HOST

# The unrolled kernels cost gcc 12 much time: for the places of their variables, which no debugger follows there, in every
# build, and for what sanitizers add at -O2. See also Q_PART. Tiles of floats keep -O2: their sums stay in registers only then.
$(B)/obj/kernels/cpu/x86/%.o: CFLAGS += -fno-var-tracking $(if $(SAN),-O1)
$(B)/obj/kernels/cpu/x86/matmul_f32_%.o $(B)/obj/kernels/cpu/x86/matmul_split_%.o: CFLAGS += $(if $(SAN),-O2)

$(B)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(CC) $(ALL_CFLAGS) -MMD -MP -c $< -o $@

# Recipes are texts in the tree and string literals in the library.
$(B)/gen/recipes.inc: $(RECIPES)
	@mkdir -p $(@D)
	@for f in $(RECIPES); do n=$$(basename $$f .txt); printf 'RECIPE("%s",\n' $$n; \
	  sed -n -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e '1s/^# *\(.*\)$$/"\1",/p' $$f; \
	  sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^\(.*\)$$/"\1\\n"/' $$f; printf ')\n'; done > $@.tmp && mv $@.tmp $@
$(B)/obj/libquant/recipe.o: $(B)/gen/recipes.inc

# Shaders: each becomes words of SPIR-V, all together one file of arrays. What they include of the tree is one list.
VK_COMP := $(if $(HAVE_VULKAN),$(wildcard kernels/vulkan/*.comp))
VK_WORDS := $(VK_COMP:kernels/vulkan/%.comp=$(B)/gen/vk_%.words)
VK_SHARED := $(wildcard kernels/vulkan/*.glsl kernels/vulkan/*.def kernels/vulkan/roles.h) libquant/codec.h libquant/encode_codec.h libquant/i4_codec.h libquant/i8_codec.h libquant/book_codec.h libquant/nf4_levels.h libquant/e2m1.h libquant/formats.def \
             $(wildcard libquant/formats/*.c)
$(B)/gen/vk_codecs.glsl: libquant/formats.def
	@mkdir -p $(@D)
	@awk -F'[(,]' '/^FORMAT\(/ { printf "#include \"libquant/formats/%s.c\"\nconst int number_of_%s = %d;\n", $$2, $$2, n++ }' \
	  $< >$@.tmp && mv $@.tmp $@
# The formats of keys and values: KV_FORMS applies FORM to each; and their codecs for who has no others.
$(B)/gen/vk_kv_forms.glsl: libquant/kv_forms.def
	@mkdir -p $(@D)
	@awk -F'[(,]' '/^KV_FORM\(/ { all = all " FORM(" $$2 ")" } END { print "#define KV_FORMS" all }' $< >$@.tmp && mv $@.tmp $@
$(B)/gen/vk_kv_codecs.glsl: libquant/formats.def libquant/kv_forms.def
	@mkdir -p $(@D)
	@awk -F'[(,]' '/^FORMAT\(/ { number[$$2] = n++ } /^KV_FORM\(/ { \
	  printf "#include \"libquant/formats/%s.c\"\nconst int number_of_%s = %d;\n", $$2, $$2, number[$$2] }' $^ >$@.tmp && mv $@.tmp $@
VK_LISTS := $(B)/gen/vk_codecs.glsl $(B)/gen/vk_kv_forms.glsl $(B)/gen/vk_kv_codecs.glsl
$(B)/gen/vk_%.words: kernels/vulkan/%.comp $(VK_SHARED) $(VK_LISTS)
	$(call say,GLSLC)
	$(Q)glslc --target-env=vulkan1.2 -O0 -I. -I$(B)/gen -mfmt=num -o $@ $<
$(B)/gen/vk_shaders.inc: $(VK_WORDS)
	@for f in $^; do n=$${f##*/vk_}; echo "static const uint32_t q_vk_words_$${n%.words}[] = {"; cat $$f; echo '};'; done \
	  >$@.tmp && mv $@.tmp $@
$(B)/obj/kernels/vulkan/vk_shapes.o: $(B)/gen/vk_shaders.inc

$(B)/libquant.a: $(LIB_OBJ)
	@rm -f $@
	$(call say,AR)
	$(Q)$(AR) rcs $@ $^
$(B)/libquant.so: $(LIB_OBJ) libquant/libquant.map
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS) $(LDSAN) -shared -Wl,-soname,libquant.so.$(ABI) -Wl,-z,defs \
	  -Wl,--version-script=libquant/libquant.map -o $@ $(LIB_OBJ) $(LDLIBS)
$(B)/lq: $(TOOL_OBJ) $(B)/libquant.a
	$(call say,LD)
	$(Q)$(CC) $(LDFLAGS) $(LDSAN) -o $@ $^ $(JSON_LIBS) $(LDLIBS)

# The whole library in one file, with the kernels of every processor, for builds that are not this one: without Vulkan,
# which needs its headers and a compiler of shaders.
EMBED_DIRS := $(filter-out kernels/vulkan,$(LIB_DIRS))
EMBED_SRC := $(wildcard $(EMBED_DIRS:%=%/*.c)) $(filter-out $(wildcard $(EMBED_DIRS:%=%/*.c)),$(wildcard kernels/cpu/*/*.c))
EMBED_ALL := $(wildcard include/*.h $(addsuffix /*.h,$(EMBED_DIRS) kernels/cpu/*) $(addsuffix /*.def,$(EMBED_DIRS)))
$(B)/embed/quant_all.c: tools/embed.awk LICENSE $(EMBED_SRC) $(EMBED_ALL) $(B)/gen/recipes.inc
	@mkdir -p $(@D)
	$(call say,EMBED)
	$(Q)awk -f tools/embed.awk -v gen=$(B)/gen $(EMBED_SRC) >$@.tmp && mv $@.tmp $@
$(B)/embed/libquant.h: include/libquant.h
	@mkdir -p $(@D) && cp $< $@
embed: $(B)/embed/quant_all.c $(B)/embed/libquant.h

# Tests: each tests/test_X.c is a program over the library's objects.
$(B)/tests/%: $(B)/obj/tests/%.o $(TEST_HELP) $(B)/libquant.a
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDSAN) -o $@ $^ $(TEST_LIBS) $(JSON_LIBS) $(LDLIBS)
# Libraries for LD_PRELOAD, as they are in every build: no sanitizer, nothing of ours linked.
$(B)/tests/shim_%.so: tests/shim_%.c
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(filter-out -fsanitize=% -fno-sanitize% --coverage,$(STD)) $(filter-out -Wconversion,$(WARN)) $(CFLAGS) -shared \
	  -o $@ $< -ldl
# What stands in for the system's Vulkan library in test_vulkan.
$(B)/tests/mock/libvulkan.so.1: tests/mock_vulkan.c tests/mock_vulkan.h
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(filter-out -fsanitize=% -fno-sanitize% --coverage,$(STD)) $(filter-out -Wconversion,$(WARN)) $(CFLAGS) -shared \
	  -Wl,-soname,libvulkan.so.1 -o $@ $< -ldl
$(B)/obj/tests/%.o: WARN := $(filter-out -Wconversion,$(WARN))

# The fuzz targets as plain programs, for tests/check_seeds.sh.
$(B)/tools.a: $(filter-out $(B)/obj/tools/lq.o,$(TOOL_OBJ))
	@rm -f $@
	$(call say,AR)
	$(Q)$(AR) rcs $@ $^
$(B)/replay/%: $(B)/obj/tests/fuzz_%.o $(B)/obj/tests/replay.o $(B)/tools.a $(B)/libquant.a
	@mkdir -p $(@D)
	$(call say,LD)
	$(Q)$(CC) $(LDSAN) -o $@ $^ $(JSON_LIBS) $(LDLIBS)

tests-build: all $(TEST_BIN) $(REPLAY_BIN) $(TEST_SHIM) $(TEST_MOCK)
test: setup
	@$(MAKE) --no-print-directory tests-build
	@B=$(B) CC="$(CC)" tests/run.sh
check: test

# Static analysis: gcc's -fanalyzer, each file by itself, findings as errors. Kernels of intrinsics are left out: it does
# not follow their unrolled arrays of registers, and the tests put fences around all that they read and write.
ANALYZE_OBJ := $(patsubst %.c,$(B)/analyze/%.o,$(filter-out kernels/cpu/x86/% kernels/cpu/arm/%,$(LIB_SRC)) $(TOOL_SRC))
$(B)/analyze/libquant/formats/%.o: STD += -DQ_HOST
$(B)/analyze/libquant/recipe.o: $(B)/gen/recipes.inc
$(B)/analyze/kernels/vulkan/vk_shapes.o: $(B)/gen/vk_shaders.inc
$(B)/analyze/%.o: %.c
	@mkdir -p $(@D)
	@echo "  ANALYZE $<"
	$(Q)gcc $(STD) $(VULKAN) -O1 -fanalyzer -Werror -DQ_ANALYZE -I$(B)/gen -MMD -MP -c $< -o $@
analyze: $(ANALYZE_OBJ)

# The tests for AArch64 on another machine: its compiler's output through an emulator of the processor, once as one with
# every extension and once as one with none. Left out: scripts and programs that start the command `lq` themselves, which
# the emulator does not follow, and those that take many minutes there.
CROSS ?= aarch64-linux-gnu-gcc
QEMU ?= qemu-aarch64-static
test-aarch64: override B := $(B)-aarch64
test-aarch64:
ifneq ($(SETUP),0)
	@tools/setup.sh --aarch64
endif
	@$(MAKE) --no-print-directory tests-build B=$(B) CC="$(CROSS)"
	@B=$(B) RUNNER="$(QEMU)" WITHOUT='check_* cli_* test_calibrate_memory test_corrupt test_fold_search test_kill* test_lora test_nomem test_pack test_quality test_quantize test_wide' tests/run.sh
	@B=$(B) RUNNER="$(QEMU) -cpu cortex-a53" ONLY=test_kernels tests/run.sh

demo: setup
	@$(MAKE) --no-print-directory all
	@$(B)/lq bench quality

# Speed of the bundled model as it is and in three schemes, beside what the memory allows.
bench: setup
	@$(MAKE) --no-print-directory all
	@mkdir -p $(B)/bench
	@$(B)/lq bench model bench/data/pocket
	@for s in q8_0 q6_k q4_k_m; do \
	  $(B)/lq quantize bench/data/pocket $(B)/bench/$$s.gguf --scheme $$s --force 2>/dev/null && \
	  $(B)/lq bench model $(B)/bench/$$s.gguf || exit; done

setup:
ifneq ($(SETUP),0)
	@tools/setup.sh
endif

# Installing: DESTDIR goes before every path, PREFIX and the folders below it are what the installed files are told.
# lq is linked with the static library, since it may use more of it than lq_*: it runs from any place.
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR ?= $(PREFIX)/share/man
DOCDIR ?= $(PREFIX)/share/doc/libquant
PKGCONFIGDIR ?= $(LIBDIR)/pkgconfig
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d
LDCONFIG ?= ldconfig
# Manual pages and completion are what lq says of itself. A cross build needs one that runs here: HOST_LQ=.
HOST_LQ ?= $(B)/lq
MAN1 := $(patsubst %,$(B)/man/lq-%.1,$(subst _,-,$(shell sed -n 's/^COMMAND(\([a-z0-9_]*\)).*/\1/p' tools/commands.def)))
INSTALLED := $(B)/install/libquant.a $(B)/man/lq.1 $(MAN1) $(B)/man/libquant.3 $(addprefix $(B)/completion/,bash zsh fish)

# One object, in which only lq_* can be seen from outside. Tests link with the other archive and see everything.
OBJCOPY ?= $(shell $(CC) -print-prog-name=objcopy)
$(B)/install/libquant.a: $(LIB_OBJ)
	@mkdir -p $(@D) && rm -f $@
	$(call say,AR)
	$(Q)$(CC) $(if $(findstring -flto,$(CFLAGS)),-flinker-output=nolto-rel) -r -nostdlib -o $(@D)/libquant.o $^ && $(OBJCOPY) --localize-hidden $(@D)/libquant.o && \
	  $(AR) rcs $@ $(@D)/libquant.o && rm $(@D)/libquant.o
$(B)/man/lq.1: $(HOST_LQ)
	@mkdir -p $(@D) && $(HOST_LQ) help --man >$@.tmp && mv $@.tmp $@
$(B)/man/lq-%.1: $(HOST_LQ)
	@mkdir -p $(@D) && $(HOST_LQ) help --man $* >$@.tmp && mv $@.tmp $@
$(B)/man/libquant.3: tools/man3.awk include/libquant.h
	@mkdir -p $(@D) && awk -f tools/man3.awk -v version=$(VERSION) \
	  -v date=$$(date -u -d @$${SOURCE_DATE_EPOCH:-$$(date +%s)} +%Y-%m-%d) include/libquant.h >$@.tmp && mv $@.tmp $@
$(B)/completion/%: $(HOST_LQ)
	@mkdir -p $(@D) && $(HOST_LQ) completion $* >$@.tmp && mv $@.tmp $@

INSTALL = DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' BINDIR='$(BINDIR)' LIBDIR='$(LIBDIR)' INCLUDEDIR='$(INCLUDEDIR)' \
  MANDIR='$(MANDIR)' DOCDIR='$(DOCDIR)' PKGCONFIGDIR='$(PKGCONFIGDIR)' BASHDIR='$(BASHDIR)' ZSHDIR='$(ZSHDIR)' \
  FISHDIR='$(FISHDIR)' LDCONFIG='$(LDCONFIG)' B='$(B)' VERSION='$(VERSION)' \
  MANPAGES='$(notdir $(filter $(B)/man/%,$(INSTALLED)))' tools/install.sh
manual: $(filter $(B)/man/%,$(INSTALLED))
install: all $(INSTALLED)
	@$(INSTALL) install
	@echo '  libquant $(VERSION) is in $(DESTDIR)$(PREFIX)'
uninstall:
	@$(INSTALL) uninstall

# Fuzz targets: built with clang's libFuzzer under ASan and UBSan from scratch objects of their own; a target takes what
# it needs of the library and of the tools from archives.
FUZZCC ?= clang
FUZZ_CFLAGS := -std=c11 -D_GNU_SOURCE -ffp-contract=off -O1 -g -fsanitize=fuzzer-no-link,address,undefined \
               -fno-sanitize-recover=all -pthread $(VULKAN) -I$(B)/gen
FUZZ_OBJ := $(LIB_SRC:%.c=$(B)/fuzz/obj/%.o) $(patsubst %.c,$(B)/fuzz/obj/%.o,$(filter-out tools/lq.c,$(TOOL_SRC)))
$(B)/fuzz/obj/libquant/formats/%.o: FUZZ_CFLAGS += -DQ_HOST
# Kernels see no bytes before the parsers have judged them, and instrumented they take clang minutes each: not here.
$(B)/fuzz/obj/kernels/cpu/%.o: FUZZ_CFLAGS += -fno-sanitize=all
$(B)/fuzz/obj/libquant/recipe.o: $(B)/gen/recipes.inc
$(B)/fuzz/obj/kernels/vulkan/vk_shapes.o: $(B)/gen/vk_shaders.inc
$(B)/fuzz/obj/%.o: %.c
	@mkdir -p $(@D)
	$(call say,CC)
	$(Q)$(FUZZCC) $(FUZZ_CFLAGS) -MMD -MP -c $< -o $@
$(B)/fuzz/all.a: $(FUZZ_OBJ)
	@rm -f $@
	$(call say,AR)
	$(Q)$(AR) rcs $@ $^
$(B)/fuzz/fuzz_%: $(B)/fuzz/obj/tests/fuzz_%.o $(B)/fuzz/all.a
	$(call say,LD)
	$(Q)$(FUZZCC) $(FUZZ_CFLAGS) -fsanitize=fuzzer,address,undefined -o $@ $^ $(JSON_LIBS) $(LDLIBS)
fuzz: setup
	@$(MAKE) --no-print-directory $(FUZZ_BIN)
	@tests/fuzz.sh $(or $(TIME),60) $(FUZZ_BIN)

# Lines and branches that the tests reach, in a build of their own.
coverage: setup
	@$(MAKE) --no-print-directory B=$(B)-coverage COV=1 CFLAGS='-O1 -g' tests-build
	@B=$(B)-coverage FUZZ=$(FUZZ) FUZZ_CORPORA=$(B)/fuzz CC="$(CC)" tests/coverage.sh

clean:
	rm -rf $(B)

help:
	@echo 'make          build/lq, build/libquant.a, build/libquant.so'
	@echo 'make demo     quantize the bundled model with every scheme and print what each one costs'
	@echo 'make test     build and run all tests'
	@echo 'make analyze  static analysis of the library and lq'
	@echo 'make test-aarch64  the test programs for AArch64, through an emulator'
	@echo 'make bench    the speed of the bundled model in a few schemes'
	@echo 'make fuzz     run every fuzz target for TIME seconds (60), or only NAME, JOBS at once'
	@echo 'make coverage run the tests and print the lines and branches that they reach'
	@echo 'make install  to PREFIX (/usr/local), below DESTDIR; BINDIR LIBDIR INCLUDEDIR MANDIR DOCDIR PKGCONFIGDIR'
	@echo 'make uninstall   takes away what install put there, given the same variables'
	@echo 'make manual   build/man: the manual pages'
	@echo 'make embed    build/embed/quant_all.c: the library as one file, to compile in a build of your own'
	@echo 'make clean    remove the build folder'

-include $(shell find $(B) -name '*.d' 2>/dev/null)
