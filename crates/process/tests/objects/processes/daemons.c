// object: daemons whose parents are gone, in sessions of leaders that have ended, and groups of others; made before the first copy
// status: captured
#include "object.h"
#include <sys/wait.h>
#include <sys/mman.h>

struct seen {
    pid_t pid, session, group;
    volatile unsigned count;
};

static volatile struct seen *all;

static void stay(int at) {
    while (at < 4 && getppid() != 1) usleep(1000);
    all[at].session = getsid(0);
    all[at].group = getpgrp();
    all[at].pid = getpid();
    for (;;) {
        if (getsid(0) != all[at].session || getpgrp() != all[at].group) all[at].pid = -1;
        if (getppid() != 1 && at < 4) all[at].pid = -2;
        all[at].count++;
        usleep(1000);
    }
}

int main(void) {
    all = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t first = fork();
    if (first == 0) {
        // A session whose leader ends; two daemons in its group, two in the group of one that ends as well.
        setsid();
        pid_t other = fork();
        if (other == 0) {
            setpgid(0, 0);
            if (fork() == 0) stay(2);
            if (fork() == 0) {
                if (fork() == 0) stay(5);
                stay(3);
            }
            usleep(20000);
            _exit(0);
        }
        if (fork() == 0) stay(0);
        if (fork() == 0) {
            if (fork() == 0) {
                setpgid(0, 0);
                stay(4);
            }
            stay(1);
        }
        waitpid(other, 0, 0);
        _exit(0);
    }
    CHECK_EQUAL(waitpid(first, 0, 0), first);
    for (int at = 0; at < 6; at++)
        while (!all[at].count) usleep(1000);
    usleep(50000);
    ready();
    while (go_on()) {}
    for (int at = 0; at < 6; at++) {
        unsigned before = all[at].count;
        for (int tries = 0; tries < 2000 && all[at].count == before; tries++) usleep(1000);
        CHECK(all[at].count != before);
        CHECK(all[at].pid > 0);
        CHECK_EQUAL(getsid(all[at].pid), first);
    }
    CHECK_EQUAL(all[0].group, first);
    CHECK_EQUAL(all[1].group, first);
    CHECK_EQUAL(all[2].group, all[3].group);
    CHECK_EQUAL(all[4].group, all[4].pid);
    PASS();
}
