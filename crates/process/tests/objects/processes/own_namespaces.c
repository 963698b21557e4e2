// object: descriptors of the namespaces that the workload is in (`/proc/self/ns/…`), and going to where it is (`setns`)
// status: captured
// note: other namespaces, and those of time, are refused
#include "object.h"
#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>

static const char *NAMES[] = {"cgroup", "ipc", "mnt", "net", "pid", "user", "uts"};
#define COUNT (int)(sizeof NAMES / sizeof *NAMES)

int main(void) {
    int held[COUNT];
    for (int i = 0; i < COUNT; i++) {
        char path[40];
        snprintf(path, sizeof path, "/proc/self/ns/%s", NAMES[i]);
        held[i] = open(path, O_RDONLY | O_CLOEXEC);
        CHECK(held[i] >= 0);
    }
    ready();
    do {
        for (int i = 0; i < COUNT; i++) {
            char path[40];
            struct stat now, open;
            snprintf(path, sizeof path, "/proc/self/ns/%s", NAMES[i]);
            CHECK(!stat(path, &now) && !fstat(held[i], &open));
            if (now.st_ino != open.st_ino) FAIL("%s: in %lu, open %lu", NAMES[i], now.st_ino, open.st_ino);
        }
    } while (go_on());
    CHECK(!setns(held[3], CLONE_NEWNET));
    PASS();
}
