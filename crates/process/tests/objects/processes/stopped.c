// object: processes stopped by job control (SIGSTOP, SIGTSTP), with threads, their parents told or not yet; SIGCONT later
// status: captured
#include "object.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

static volatile unsigned *counts;

static void *turns(void *unused) {
    (void)unused;
    for (;;) {
        counts[1]++;
        usleep(500);
    }
    return 0;
}

static pid_t child(void) {
    pid_t pid = fork();
    if (pid > 0) setpgid(pid, pid);
    if (pid == 0) {
        // A group that its parent watches over: another would not be stopped by SIGTSTP.
        setpgid(0, 0);
        pthread_t thread;
        pthread_create(&thread, 0, turns, 0);
        for (;;) {
            counts[0]++;
            usleep(500);
        }
    }
    return pid;
}

static volatile sig_atomic_t told;

static void count(int signal) {
    (void)signal;
    told++;
}

// A busy machine takes its time.
static void wait_told(int expected) {
    for (int tries = 0; tries < 5000 && told < expected; tries++) usleep(1000);
    CHECK_EQUAL(told, expected);
}

static int stand_still(void) {
    unsigned before[2] = {counts[0], counts[1]};
    go_on();
    go_on();
    return before[0] == counts[0] && before[1] == counts[1];
}

int main(void) {
    counts = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid = child();
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
    sigaction(SIGCHLD, &action, 0);
    ready();
    int more, expected = 0;
    do {
        int which = expected / 2 % 2 ? SIGTSTP : SIGSTOP;
        CHECK(!kill(pid, which));
        wait_told(++expected);
        // Not waited for yet.
        more = go_on();
        more = go_on() && more;
        int status = 0;
        CHECK_EQUAL(waitpid(pid, &status, WUNTRACED | WNOHANG), pid);
        CHECK(WIFSTOPPED(status));
        CHECK_EQUAL(WSTOPSIG(status), which);
        // Told, and still stopped.
        CHECK(stand_still());
        more = go_on() && more;
        CHECK_EQUAL(waitpid(pid, &status, WUNTRACED | WCONTINUED | WNOHANG), 0);
        CHECK_EQUAL(told, expected);
        CHECK(!kill(pid, SIGCONT));
        wait_told(++expected);
        more = go_on() && more;
        CHECK_EQUAL(waitpid(pid, &status, WUNTRACED | WCONTINUED | WNOHANG), pid);
        CHECK(WIFCONTINUED(status));
        unsigned before[2] = {counts[0], counts[1]};
        for (int tries = 0; tries < 1000 && (before[0] == counts[0] || before[1] == counts[1]); tries++) usleep(1000);
        CHECK(before[0] != counts[0] && before[1] != counts[1]);
    } while (more);
    CHECK(!kill(pid, SIGSTOP));
    usleep(20000);
    CHECK(!kill(pid, SIGKILL));
    PASS();
}
