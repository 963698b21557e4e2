// One process of a pair, which is told on its standard input what to do. VERSION says which program it is.
//
//     pair file|text CONFIG
//     pair fields NAME LISTEN CLUSTER CA CERTIFICATE KEY PEER ADDRESS PEER ADDRESS SEED ADDRESS…

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "outlive_replicated.h"

#if VERSION == 1 || VERSION == 5
#define THING(X) X(FIELD, uint64_t, count) X(FIELD, int, gone) X(CHARS, name, 8)
#elif VERSION == 2
#define THING(X) X(ADDED, int, fresh) X(CHARS, name, 8) X(RENAMED, uint64_t, total, count) X(LOCAL, int, own)
#define COUNT total
#elif VERSION == 3
#define THING(X) X(FIELD, uint32_t, count) X(CHARS, name, 8)
#elif VERSION == 4
#define THING(X) X(FIELD, uint64_t, count) X(FIELD, int, gone) X(CHARS, name, 8) X(FIELD, int, needed)
#endif
#ifndef COUNT
#define COUNT count
#endif
OUTLIVE_STRUCT(thing, THING)
OUTLIVE_REPLICATED(thing, one)
OUTLIVE_MAP(thing, things)

// A file that is there while it is open, with the process's number in its name.
static int create(struct outlive_bytes arguments, void **value) {
    if (getenv("REFUSE")) return outlive_fail("this side refuses");
    char *path = (char *)malloc(arguments.length + 32);
    if (!path) return outlive_fail("no memory");
    sprintf(path, "%.*s.%ld", (int)arguments.length, (const char *)arguments.data, (long)getpid());
    FILE *file = fopen(path, "wx");
    if (!file) {
        int outcome = outlive_fail(strerror(errno));
        free(path);
        return outcome;
    }
    fclose(file);
    *value = path;
    return 0;
}
static void destroy(void *value) {
    unlink((char *)value);
    free(value);
}
OUTLIVE_FUNCTION(create, OUTLIVE_EAGER, destroy)
static int create_soon(struct outlive_bytes arguments, void **value) { return create(arguments, value); }
OUTLIVE_FUNCTION(create_soon, OUTLIVE_EAGER_RETRY, destroy)
static int create_late(struct outlive_bytes arguments, void **value) { return create(arguments, value); }
OUTLIVE_FUNCTION(create_late, OUTLIVE_LAZY, destroy)
#if VERSION != 5
static int only_old(struct outlive_bytes arguments, void **value) { return create(arguments, value); }
OUTLIVE_FUNCTION(only_old, OUTLIVE_LAZY, destroy)
#endif
OUTLIVE_HANDLES(files)

static enum outlive_code begin(int count, char **words, struct outlive_started *started) {
    if (strcmp(words[1], "file") == 0) return outlive_start_file(words[2], started);
    if (strcmp(words[1], "text") == 0) {
        static char text[16384];
        FILE *file = fopen(words[2], "r");
        if (!file || !fread(text, 1, sizeof text - 1, file)) exit(3);
        return outlive_start_text(text, started);
    }
    struct outlive_node nodes[16];
    memset(nodes, 0, sizeof nodes);
    int named = 0;
    for (int at = 8; at + 1 < count && named < 16; at += 2, named++) {
        nodes[named].name = words[at];
        nodes[named].address = words[at + 1];
    }
    struct outlive_config config;
    memset(&config, 0, sizeof config);
    config.name = words[2];
    config.listen = words[3];
    config.cluster = words[4];
    config.ca = words[5];
    config.certificate = words[6];
    config.key = words[7];
    config.peers = nodes;
    config.peer_count = 2;
    config.seeds = nodes + 2;
    config.seed_count = (size_t)named - 2;
    config.detection_ms = 2000;
    return outlive_start(&config, started);
}

static void say(enum outlive_code code) {
    printf("%d %s\n", (int)code, code == OUTLIVE_OK ? "" : outlive_last_error());
    fflush(stdout);
}

int main(int count, char **words) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    outlive_log(NULL);
    struct outlive_started started;
    enum outlive_code code = begin(count, words, &started);
    if (code != OUTLIVE_OK) {
        say(code);
        return 1;
    }
    if (started.how == OUTLIVE_FRESH) {
        printf("fresh %" PRIu64 "\n", started.generation);
    } else {
        printf("taken %" PRIu64 " %s\n", started.generation, started.from);
    }
    char line[600], verb[64], word[512];
    while (fgets(line, sizeof line, stdin)) {
        word[0] = 0;
        sscanf(line, "%63s %511s", verb, word);
        if (strcmp(verb, "add") == 0) {
            OUTLIVE_WRITE(one, it) {
                it->COUNT++;
                snprintf(it->name, sizeof it->name, "%.7s", word);
            }
            struct thing copy;
            OUTLIVE_READ(one, it) copy = *it;
            things_put(outlive_string(word), &copy);
            say(outlive_commit());
        } else if (strcmp(verb, "show") == 0) {
            struct thing found;
            memset(&found, 0, sizeof found);
            things_copy(outlive_string(word), &found);
            OUTLIVE_READ(one, it) {
                printf("%" PRIu64 " %s %" PRIu64 " %s\n", (uint64_t)it->COUNT, it->name, (uint64_t)found.COUNT, found.name);
            }
            outlive_commit();
        } else if (strcmp(verb, "open") == 0) {
            OUTLIVE_OPEN(files, outlive_string(word), create, outlive_string(word));
            say(outlive_commit());
        } else if (strcmp(verb, "late") == 0) {
            OUTLIVE_OPEN(files, outlive_string(word), create_late, outlive_string(word));
            say(outlive_commit());
        } else if (strcmp(verb, "soon") == 0) {
            OUTLIVE_OPEN(files, outlive_string(word), create_soon, outlive_string(word));
            say(outlive_commit());
        } else if (strcmp(verb, "close") == 0) {
            files_close(outlive_string(word));
            say(outlive_commit());
        } else if (strcmp(verb, "use") == 0) {
            char *value = (char *)files_use(outlive_string(word));
            printf("%s\n", value ? value : outlive_last_error());
            outlive_end(value);
        } else if (strcmp(verb, "status") == 0) {
            struct outlive_state state;
            outlive_status(&state);
            printf("%d %d %" PRIu64 "\n", (int)state.role, state.is_protected, state.failing);
        } else if (strcmp(verb, "over") == 0) {
            say(outlive_hand_over());
        }
    }
    return 0;
}
