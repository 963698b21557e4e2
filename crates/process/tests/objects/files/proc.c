// object: files and directories of `/proc` that stay open, the machine's, the process's own, and those of its child
// status: captured
// note: those of a thread, and those that are of a memory (`maps`, `smaps`, `mem`, `environ`, `auxv`): refused, until they are closed
#include "object.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static int opened(const char *format, int pid, int flags) {
    char path[64];
    snprintf(path, sizeof path, format, pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC | flags);
    if (fd < 0) FAIL("%s: %s", path, strerror(errno));
    return fd;
}

// The line of a file from its beginning.
static void says(int fd, const char *what) {
    char text[8192] = "";
    CHECK(lseek(fd, 0, SEEK_SET) == 0);
    ssize_t got, all = 0;
    while (all < (ssize_t)sizeof text - 1 && (got = read(fd, text + all, sizeof text - 1 - all)) > 0) all += got;
    text[all] = 0;
    if (!strstr(text, what)) FAIL("no %s in %.100s", what, text);
}

int main(void) {
    char own[32], of_child[32];
    int child = fork();
    CHECK(child >= 0);
    if (!child) for (;;) pause();
    int stat = opened("/proc/self/stat", 0, 0), status = opened("/proc/%d/status", child, 0);
    int memory = opened("/proc/meminfo", 0, 0), links = opened("/proc/self/net/dev", 0, 0), mounts = opened("/proc/mounts", 0, 0);
    int all = opened("/proc", 0, O_DIRECTORY), fds = opened("/proc/self/fd", 0, O_DIRECTORY);
    char half[12];
    int place = opened("/proc/self/status", 0, 0);
    CHECK(read(place, half, 6) == 6 && !memcmp(half, "Name:\t", 6));
    snprintf(own, sizeof own, "%d (", getpid());
    snprintf(of_child, sizeof of_child, "Pid:\t%d\n", child);
    ready();
    do {
        says(stat, own);
        says(status, of_child);
        says(memory, "MemTotal:");
        says(links, "lo:");
        says(mounts, " proc ");
        char name[16];
        snprintf(name, sizeof name, "%d", child);
        CHECK(!faccessat(all, name, F_OK, 0));
        snprintf(name, sizeof name, "%d", fds);
        CHECK(!faccessat(fds, name, F_OK, AT_SYMLINK_NOFOLLOW));
    } while (go_on());
    // Where it stood: the name of the program follows.
    char name[16];
    CHECK(!prctl(PR_GET_NAME, name));
    CHECK(read(place, half, 4) == 4);
    if (memcmp(half, name, 4)) FAIL("%.4s follows, not %s", half, name);
    kill(child, SIGKILL);
    CHECK(waitpid(child, 0, 0) == child);
    char byte;
    CHECK(pread(status, &byte, 1, 0) < 0 && errno == ESRCH);
    PASS();
}
