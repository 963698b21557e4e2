// The first thread ends; another goes on with a connection that it has.
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

static int near, far;

static void *go_on(void *arg) {
    (void)arg;
    for (long total = 0;; total++) {
        char byte = 'x';
        usleep(1000);
        if (write(near, &byte, 1) != 1 || read(far, &byte, 1) != 1) { printf("BAD connection\n"); fflush(stdout); _exit(1); }
        // A close of another connection meanwhile.
        int other = socket(AF_INET, SOCK_STREAM, 0);
        close(other);
        printf("total %ld \n", total);
        fflush(stdout);
    }
    return 0;
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 8)) perror("BAD listen");
    getsockname(listener, (struct sockaddr *)&address, &size);
    near = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(near, (struct sockaddr *)&address, size)) perror("BAD connect");
    far = accept(listener, 0, 0);
    pthread_t thread;
    pthread_create(&thread, 0, go_on, 0);
    pthread_exit(0);
}
