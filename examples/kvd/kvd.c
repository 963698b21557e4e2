// A key-value server in C, whose data outlives the machine it runs on.
//
//     kvd CONFIG LISTEN
//
// Run it on two nodes. One serves, the other follows, and serves when the first dies. The whole of its high availability is:
// its state is declared by macros of outlive_replicated.h, it begins with a start, and replies leave after their commit.
//
// One request a line; the reply is one line:
//
//     CLIENT NUMBER set KEY VALUE    ok, and the entry's version; asked again it is answered again, and done once
//     CLIENT NUMBER add KEY AMOUNT   the new amount; likewise
//     CLIENT NUMBER delete KEY       ok, or none; likewise
//     get KEY                        the version, the amount and the value, or none
//     scan PREFIX                    every key that begins so
//     totals                         how many entries, changes and deletions there are
//     status                         the generation, and whether a backup is in step

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "outlive_replicated.h"

#define KEY_SIZE 64
#define VALUE_SIZE 128
// A reply is one line: longer ones, of a scan, are cut.
#define LINE_SIZE 4096

#define ENTRY(X)                  \
    X(FIELD, uint64_t, version)   \
    X(FIELD, int64_t, amount)     \
    X(CHARS, value, VALUE_SIZE)
OUTLIVE_STRUCT(entry, ENTRY)

#define TOTALS(X)                 \
    X(FIELD, uint64_t, changes)   \
    X(FIELD, uint64_t, deletions)
OUTLIVE_STRUCT(totals, TOTALS)

OUTLIVE_MAP(entry, entries)
OUTLIVE_REPLICATED(totals, totals)

// What is opened on both sides: each has a file of its own to note takeovers in, opened by the same call.
static int open_journal(struct outlive_bytes arguments, void **value) {
    char path[512];
    snprintf(path, sizeof path, "%.*s.%ld", (int)arguments.length, (const char *)arguments.data, (long)getpid());
    FILE *file = fopen(path, "a");
    if (!file) return outlive_fail(strerror(errno));
    *value = file;
    return 0;
}
static void close_journal(void *value) { fclose((FILE *)value); }
OUTLIVE_FUNCTION(open_journal, OUTLIVE_EAGER, close_journal)
OUTLIVE_HANDLES(journals)

static void note(const char *what) {
    FILE *file = (FILE *)journals_use(outlive_string("journal"));
    if (!file) return;
    fprintf(file, "%s\n", what);
    fflush(file);
    outlive_end(file);
}

// Ends the process when nothing that it says counts any more: another has taken over, and clients find it.
static void must(enum outlive_code code) {
    if (code == OUTLIVE_OK) return;
    fprintf(stderr, "error: %s\n", outlive_last_error());
    _exit(1);
}

struct change {
    const char *verb, *key, *value;
};

static void say(struct outlive_reply *reply, const char *format, ...) {
    char text[LINE_SIZE];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    outlive_reply_append(reply, outlive_string(text));
}

// The work of a request: done once, committed together with its reply, undone as a whole if it returns anything but 0.
static int change(void *context, struct outlive_reply *reply) {
    const struct change *asked = (const struct change *)context;
    struct outlive_bytes key = outlive_string(asked->key);
    if (strcmp(asked->verb, "delete") == 0) {
        if (entries_remove(key) == OUTLIVE_NONE) {
            say(reply, "none");
            return 0;
        }
        OUTLIVE_WRITE(totals, all) all->deletions++;
        say(reply, "ok");
        return 0;
    }
    if (!entries_has(key)) {
        struct entry fresh = {0};
        entries_put(key, &fresh);
    }
    OUTLIVE_WRITE_AT(entries, key, it) {
        it->version++;
        if (strcmp(asked->verb, "set") == 0) {
            snprintf(it->value, sizeof it->value, "%s", asked->value);
            say(reply, "ok %" PRIu64, it->version);
        } else {
            // Around the ends of its range, as counters go.
            it->amount = (int64_t)((uint64_t)it->amount + (uint64_t)strtoll(asked->value, NULL, 10));
            say(reply, "%" PRId64, it->amount);
        }
    }
    OUTLIVE_WRITE(totals, all) all->changes++;
    return 0;
}

struct scan {
    const char *prefix;
    char *line;
    size_t length;
};

static int scan_one(void *context, struct outlive_bytes key, struct outlive_bytes element) {
    struct scan *scan = (struct scan *)context;
    (void)element;
    size_t prefix = strlen(scan->prefix);
    if (key.length < prefix || memcmp(key.data, scan->prefix, prefix) != 0) return 1;
    if (scan->length + key.length + 2 > LINE_SIZE) return 1;
    if (scan->length) scan->line[scan->length++] = ' ';
    memcpy(scan->line + scan->length, key.data, key.length);
    scan->length += key.length;
    return 0;
}

static void answer(char *line, char *reply) {
    char *rest = NULL, *words[5] = {0};
    int count = 0;
    for (char *word = strtok_r(line, " \r\n", &rest); word && count < 5; word = strtok_r(NULL, " \r\n", &rest)) {
        words[count++] = word;
    }
    bool is_set = count == 5 && strcmp(words[2], "set") == 0, is_add = count == 5 && strcmp(words[2], "add") == 0;
    bool is_delete = count == 4 && strcmp(words[2], "delete") == 0;
    if (is_set || is_add || is_delete) {
        if (strlen(words[3]) >= KEY_SIZE || (is_set && strlen(words[4]) >= VALUE_SIZE)) {
            snprintf(reply, LINE_SIZE, "too long");
            return;
        }
        struct outlive_request request = {0, strtoull(words[0], NULL, 10), strtoull(words[1], NULL, 10)};
        struct change asked = {words[2], words[3], words[4]};
        struct outlive_buffer said = {0};
        enum outlive_code code = outlive_once(request, change, &asked, &said);
        if (code == OUTLIVE_PASSED) {
            snprintf(reply, LINE_SIZE, "answered before");
            return;
        }
        must(code);
        snprintf(reply, LINE_SIZE, "%.*s", (int)said.length, (const char *)said.data);
        outlive_buffer_free(&said);
        return;
    }
    if (count == 2 && strcmp(words[0], "get") == 0) {
        snprintf(reply, LINE_SIZE, "none");
        OUTLIVE_READ_AT(entries, outlive_string(words[1]), it) {
            snprintf(reply, LINE_SIZE, "%" PRIu64 " %" PRId64 " %s", it->version, it->amount, it->value);
        }
    } else if (count == 2 && strcmp(words[0], "scan") == 0) {
        struct scan scan = {words[1], reply, 0};
        entries_each(outlive_string(words[1]), scan_one, &scan);
        reply[scan.length] = 0;
    } else if (count == 1 && strcmp(words[0], "totals") == 0) {
        // Before the block: who holds what it reads does not wait for something else.
        size_t count = entries_count();
        OUTLIVE_READ(totals, all) {
            snprintf(reply, LINE_SIZE, "%zu %" PRIu64 " %" PRIu64, count, all->changes, all->deletions);
        }
    } else if (count == 1 && strcmp(words[0], "status") == 0) {
        struct outlive_state state;
        must(outlive_status(&state));
        snprintf(reply, LINE_SIZE, "%" PRIu64 " Some(%s)", state.generation, state.is_protected ? "Protected" : "Exposed");
        return;
    } else {
        snprintf(reply, LINE_SIZE, "no such request");
        return;
    }
    // What was read is said when it is safe.
    must(outlive_commit());
}

static void *serve(void *context) {
    FILE *stream = fdopen((int)(intptr_t)context, "r");
    char line[1024], reply[LINE_SIZE + 1];
    while (stream && fgets(line, sizeof line, stream)) {
        // A line that is cut, by its length or by the end of its connection, is another request than was meant.
        if (!strchr(line, '\n')) break;
        answer(line, reply);
        strcat(reply, "\n");
        if (outlive_send(fileno(stream), reply, strlen(reply)) < 0) break;
    }
    if (stream) fclose(stream);
    return NULL;
}

int main(int count, char **arguments) {
    char host[64];
    unsigned port;
    if (count != 3 || sscanf(arguments[2], "%63[^:]:%u", host, &port) != 2) {
        fprintf(stderr, "usage: kvd CONFIG ADDRESS:PORT\n");
        return 2;
    }
    outlive_log(NULL);
    struct outlive_started started;
    must(outlive_start_file(arguments[1], &started));
    if (started.how == OUTLIVE_FRESH) {
        must(OUTLIVE_OPEN(journals, outlive_string("journal"), open_journal, outlive_string(arguments[1])));
        must(outlive_commit());
        note("begins");
    } else {
        note("goes on");
        fprintf(stderr, "goes on after commit %" PRIu64 ": %s\n", started.commit, started.why);
    }

    int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1 ||
        bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 128) != 0) {
        perror("cannot listen");
        return 1;
    }
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0) continue;
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)client) == 0) pthread_detach(thread);
        else close(client);
    }
}
