// object: a process that is stopped from before the first copy to after the last, with a signal that waits for it
// status: captured
#include "object.h"
#include <sys/mman.h>
#include <sys/wait.h>

static volatile unsigned *counts;

static void count(int signal) {
    (void)signal;
    counts[1]++;
}

int main(void) {
    counts = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGUSR2, count);
        for (;;) {
            counts[0]++;
            usleep(500);
        }
    }
    usleep(20000);
    CHECK(!kill(pid, SIGSTOP));
    int status;
    CHECK_EQUAL(waitpid(pid, &status, WUNTRACED), pid);
    CHECK(!kill(pid, SIGUSR2));
    unsigned before = counts[0];
    ready();
    while (go_on()) {
        CHECK_EQUAL(counts[0], before);
        CHECK_EQUAL(counts[1], 0);
        CHECK_EQUAL(waitpid(pid, &status, WUNTRACED | WCONTINUED | WNOHANG), 0);
    }
    CHECK(!kill(pid, SIGCONT));
    for (int tries = 0; tries < 2000 && (counts[0] == before || !counts[1]); tries++) usleep(1000);
    CHECK_EQUAL(counts[1], 1);
    CHECK(counts[0] != before);
    PASS();
}
