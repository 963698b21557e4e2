// object: what is set by writing to a process's files in `/proc`: `oom_score_adj`, `coredump_filter`, `comm`
// status: captured
// note: noticed where the kernel has BPF and its type information
#include "object.h"
#include <fcntl.h>

static void set(const char *file, const char *value) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/%s", file);
    int fd = open(path, O_WRONLY);
    CHECK(fd >= 0);
    CHECK(write(fd, value, strlen(value)) == (ssize_t)strlen(value));
    CHECK(!close(fd));
}

static void has(const char *file, const char *value) {
    char path[64], now[64] = "";
    snprintf(path, sizeof path, "/proc/self/%s", file);
    FILE *open = fopen(path, "r");
    CHECK(open && fgets(now, sizeof now, open) && !fclose(open));
    now[strcspn(now, "\n")] = 0;
    if (strcmp(now, value)) FAIL("%s is %s, not %s", file, now, value);
}

int main(void) {
    char score[16] = "321", filter[16] = "00000007", name[16] = "turn0";
    set("oom_score_adj", score);
    set("coredump_filter", "0x7");
    set("comm", name);
    ready();
    // Again and again, so that nothing but this tells of it.
    for (int turn = 1; go_on(); turn++) {
        has("oom_score_adj", score);
        has("coredump_filter", filter);
        has("comm", name);
        snprintf(score, sizeof score, "%d", 300 + turn % 100);
        snprintf(filter, sizeof filter, "0x%x", turn % 128);
        snprintf(name, sizeof name, "turn%d", turn % 1000);
        set("oom_score_adj", score);
        set("coredump_filter", filter);
        snprintf(filter, sizeof filter, "%08x", turn % 128);
        set("comm", name);
    }
    has("oom_score_adj", score);
    has("coredump_filter", filter);
    PASS();
}
