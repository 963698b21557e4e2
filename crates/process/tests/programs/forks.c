// A parent with a filled heap forks children that check what they inherited, change it, and answer over a pipe; the
// parent checks that its own copy is untouched and that every child's exit status arrives. One child lives on for good
// and is asked over and over.
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE (4 << 20)
static unsigned char *heap;

static void bad(const char *what, long a, long b) {
    printf("BAD %s %ld %ld\n", what, a, b);
    fflush(stdout);
    _exit(1);
}

static long sum(void) {
    long total = 0;
    for (int i = 0; i < SIZE; i += 512) total += heap[i];
    return total;
}

int main(void) {
    heap = malloc(SIZE);
    for (int i = 0; i < SIZE; i++) heap[i] = (unsigned char)(i >> 12);
    int ask[2], answer[2];
    if (pipe(ask) || pipe(answer)) bad("pipe", 0, 0);
    pid_t keeper = fork();
    if (keeper == 0) {
        long asked = 0, value;
        while (read(ask[0], &value, sizeof value) == sizeof value) {
            asked++;
            value = value * 2 + asked;
            if (write(answer[1], &value, sizeof value) != sizeof value) bad("keeper", 0, 0);
        }
        _exit(0);
    }
    long before = sum();
    for (long round = 1;; round++) {
        int fds[2];
        if (pipe(fds)) bad("pipe", 0, 0);
        heap[(round * 4099) % SIZE] ^= 1;
        before = sum();
        pid_t pid = fork();
        if (pid < 0) bad("fork", 0, 0);
        if (pid == 0) {
            long got = sum();
            memset(heap, 7, SIZE / 4);
            usleep(3000);
            if (write(fds[1], &got, sizeof got) != sizeof got) _exit(3);
            _exit(round % 100);
        }
        long value = round, got = 0;
        if (write(ask[1], &value, sizeof value) != sizeof value) bad("ask", 0, 0);
        if (read(fds[0], &got, sizeof got) != sizeof got) bad("answer", round, 0);
        if (got != before) bad("inherited", got, before);
        if (sum() != before) bad("own", sum(), before);
        if (read(answer[0], &value, sizeof value) != sizeof value) bad("keeper answer", 0, 0);
        if (value != round * 2 + round) bad("keeper value", value, round);
        int status = 0;
        if (waitpid(pid, &status, 0) != pid) bad("wait", pid, 0);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != round % 100) bad("status", status, round);
        close(fds[0]);
        close(fds[1]);
        printf("total %ld pid %d\n", round, getpid());
        fflush(stdout);
    }
}
